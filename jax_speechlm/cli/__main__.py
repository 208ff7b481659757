import sys

from jax_speechlm.cli import main

sys.exit(main())
