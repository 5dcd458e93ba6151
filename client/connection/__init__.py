"""Whether a site reaches its server and is known there: `wardpose site check --connect`, one kind of fault a file."""
