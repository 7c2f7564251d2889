"""What runs on the client's side: backends, the loader, the fleet, run registry."""
