"""What people ask the control plane for."""
