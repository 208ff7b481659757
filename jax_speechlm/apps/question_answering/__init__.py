"""Questions, typed or spoken, answered from passages of texts or from a knowledge graph."""
