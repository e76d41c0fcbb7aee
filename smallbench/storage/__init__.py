"""Where runs, shards and exports are kept."""
