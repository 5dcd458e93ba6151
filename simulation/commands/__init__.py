"""Sub-commands of the `wardpose` console script, one file each."""
