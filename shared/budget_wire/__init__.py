"""What the Budget service and its clients say to each other: `budget.proto`, and what is generated from it.

In the repository's root: `make stubs`. A test holds that the generated files are those of the committed definition.
"""
