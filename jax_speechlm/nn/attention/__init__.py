"""Self-attention kernels: relative positions, blocks of queries, packed segments."""
