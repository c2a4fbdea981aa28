"""The command line of G²RPO: ``g2rpo train``, ``g2rpo eval``, ``g2rpo tasks``."""
