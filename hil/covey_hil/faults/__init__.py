"""What happens to a device's state when a system call fails, or is its last: `sweep` tries every one, `table` names the cases."""
