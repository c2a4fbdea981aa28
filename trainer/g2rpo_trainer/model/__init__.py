"""The policy: what a description names, loaded, adapted, frozen in part, saved and exported."""
