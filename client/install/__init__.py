"""A device as two system services under two users, and the way back.

| what | file |
|---|---|
| where everything lies, who owns it | `layout` |
| the two units, hardened | `units` |
| users and groups | `accounts` |
| what was made here, so that leaving removes exactly that | `manifest` |
| making it | `setup` |
| removing it, and what the server keeps | `leaving` |
"""
