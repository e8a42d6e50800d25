"""What Triton writes for one kernel: metadata, group, binary."""
