"""The policy: what a configuration names, loaded, adapted, frozen in part, saved and exported."""
