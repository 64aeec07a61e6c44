"""Home Assistant's discovery: the device and its streams as entities."""
