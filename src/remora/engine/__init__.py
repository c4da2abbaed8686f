"""The seam between Remora and what runs its processes."""
