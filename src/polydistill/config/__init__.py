"""What a run says: sections that are inert and strict, each beside the `build()` of what it describes.

Names and fields only: nothing here imports torch until something is built.
"""

from polydistill.config.file import ConfigError, dump_config, load_config
from polydistill.config.run import RunConfig

__all__ = ["ConfigError", "RunConfig", "dump_config", "load_config"]
