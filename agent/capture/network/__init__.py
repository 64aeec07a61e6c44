"""What is special about cameras on the network: how they are opened, and when they count as blind."""
