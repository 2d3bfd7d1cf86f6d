"""The `vit` command: finds the verb, runs it, and turns what goes wrong into a sentence and an exit code.

0 done; 1 the work failed or the thing is unfit; 2 the request was wrong; 130 interrupted. A verb is a module of this
package with ``run(argv, session) -> int``; only the one asked for is imported, so that ``vit --help`` stays quick.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback

from flows.cli.session import Session, split
from vitcore.errors import RequestError, WorkError

VERBS = {
    "ingest": "raw photographs → a dataset version",
    "edit": "correct labels, or withdraw photographs",
    "check": "is a dataset fit to train on?",
    "audit": "copies, and test photographs that are known from training",
    "plan": "what a training will need and cost, before it runs",
    "pretrain": "train a recipe from scratch on a dataset",
    "distill": "train a recipe with a teacher to follow",
    "finetune": "go on from a trained model",
    "evaluate": "measure a model on held-out data, with confidence intervals",
    "promote": "make a model version the champion, if it passes the gate",
    "pipeline": "the whole story: photographs → champion",
    "predict": "classes and probabilities of photographs",
    "export": "a model as a folder for timm, transformers, open_clip or ONNX",
    "models": "registered models: list, lineage, comparison",
    "jobs": "what runs on a Ray cluster: list, logs, stop",
    "recipes": "what can be trained, and where it comes from",
}

_HELP = """\
usage: vit [-v] [--tracking URI] [--api URL] VERB …

A pretraining factory for vision transformers: raw photographs in, an evaluated and registered model out.

{verbs}

everywhere:
  -h, --help      help on a verb: vit pretrain --help; on a recipe's fields: vit pretrain vit_s16 --help
  -v, --verbose   the frameworks' own log lines, and the traceback of an error
  --tracking URI  an MLflow server instead of SQLite under ./.vit
  --api URL       a Prefect API instead of a temporary server
  --version       print the version

examples:
  vit pipeline elpv                                    the demo, from photographs to champion
  vit ingest photos/ data/birds                        a folder of class folders → a dataset
  vit pretrain vit_s16 --data data/birds --train.duration "90 epochs"
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    session = Session()
    try:
        session, rest = split(sys.argv[1:] if argv is None else argv)
        return _dispatch(rest, session)
    except Exception as error:
        return _explain(error, session)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again and it goes on where it was")
        return 130


def _dispatch(argv: list[str], session: Session) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<10} {summary}" for name, summary in VERBS.items())
        sys.stdout.write(_HELP.format(verbs=verbs))
        return 0
    if argv[0] == "--version":
        from vitcore import __version__

        sys.stdout.write(f"vit {__version__}\n")
        return 0
    name = argv[0]
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean `vit {near[0]}`?" if near else "see `vit --help`"
        raise RequestError(f"there is no command {name!r}; {hint}")
    verb = importlib.import_module(f"flows.cli.{name}")
    return int(verb.run(argv[1:], session))


def _explain(error: Exception, session: Session) -> int:
    """Say what went wrong; the exit code it means."""
    if isinstance(error, BrokenPipeError):
        # The reader of our output (`| head`) has left: nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if session.verbose:
        traceback.print_exc()
    if isinstance(error, RequestError):
        _fail(str(error))
        return 2
    if isinstance(error, (WorkError, OSError)):  # disks and stores speak in sentences too
        _fail(str(error))
        return 1
    what = " ".join(str(error).split()) or "no message"
    again = "" if session.verbose else "; run again with -v for the traceback"
    _fail(f"unexpected {type(error).__name__}: {what}{again}")
    return 1


def _fail(sentence: str) -> None:
    from flows.cli.console import fail

    fail(sentence)


if __name__ == "__main__":
    sys.exit(main())
