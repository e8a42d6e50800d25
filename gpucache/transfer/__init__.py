"""What carries entries to other machines and back: packs as files, and pushes and pulls of remotes."""
