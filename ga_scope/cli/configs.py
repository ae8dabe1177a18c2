"""``configs``: the configurations that come with the project."""

from ..config.files import CONFIGS, find_config
from ..errors import ConfigError
from .common import plain_parser

HELP = """Lists the configurations that come with the project, or prints where one of them lies.

Their names serve as --config from any folder, and as _BASE_ of a configuration of your own.

Examples:
  ga-scope configs
  ga-scope configs COCO-Detection/ga_retinanet_R_50_FPN_1x
"""


def main(argv=None, prog=None):
    parser = plain_parser(HELP, prog)
    parser.add_argument("name", nargs="?", help="print the path of this one")
    args = parser.parse_args(argv)
    if CONFIGS is None:
        raise ConfigError("configs: the installed package has none; install it anew")
    if args.name:
        print(find_config(args.name))
    else:
        names = sorted(str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml"))
        print("\n".join(name for name in names if not name.split("/")[-1].startswith("Base-")))
