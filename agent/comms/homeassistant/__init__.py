"""Home Assistant's discovery: a device's streams as its entities."""
