"""Predictors on the Hugging Face hub, with the calls of its ``ModelHubMixin``.

What travels is the folder that ``save`` writes. Only data files are ever fetched or sent: JSON,
safetensors, tokenizer texts, the card; nothing of a repository is run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self, cast

from lengthwise.errors import InputError
from lengthwise.predictors import folder

PREFIX = "hf:"  # of a spelling: hf:OWNER/NAME, hf:OWNER/NAME@REVISION
FILES = ("*.json", "*.safetensors", "*.txt", "*.md", "*.jinja")


class HubPredictor:
    """What a predictor that is saved as a folder has in common with models on the hub."""

    def save(self, path: str | Path) -> None:
        """Writes the folder that ``load_predictor`` reads."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """``save``, and what was saved on the hub too, if it is asked for: then its address."""
        self.save(save_directory)
        if not push_to_hub:
            return None
        return push_folder(
            save_directory, repo_id or Path(save_directory).name, **push_to_hub_kwargs
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push predictor using lengthwise.",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Saves to a repository on the hub, made if it is not there; returns the commit's address.

        A card with metrics is in the folder that was trained: ``push_folder`` takes that as it is.
        """
        with tempfile.TemporaryDirectory() as made:
            self.save(Path(made) / "predictor")
            return push_folder(
                Path(made) / "predictor", repo_id, commit_message=commit_message, private=private,
                token=token, branch=branch, create_pr=create_pr,
            )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Self:
        """The predictor in a folder, or in a repository on the hub.

        Raises ``InputError`` where there is none, or one of another class.
        """
        from lengthwise.predictors.load import load_predictor

        where = Path(pretrained_model_name_or_path)
        if not folder.is_saved(where):
            folder.check_absent(pretrained_model_name_or_path)
            where = fetched(
                str(pretrained_model_name_or_path), revision=revision, token=token,
                cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only,
            )  # fmt: skip
        found = load_predictor(where)
        if not isinstance(found, cls):
            raise InputError(
                f"{str(pretrained_model_name_or_path)!r} is a {type(found).__name__}, "
                f"not a {cls.__name__}"
            )
        return found


def push_folder(
    path: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Push predictor using lengthwise.",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Sends a saved predictor's folder to a repository, made if it is not there.

    Returns the commit's address. Raises ``InputError`` for a folder that holds no predictor.
    """
    folder.read(path)
    api = _hub().HfApi(token=token)
    made = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    name = str(getattr(made, "repo_id", repo_id))
    if branch is not None:
        api.create_branch(repo_id=name, branch=branch, repo_type="model", exist_ok=True)
    return str(
        api.upload_folder(
            repo_id=name, folder_path=str(path), repo_type="model", revision=branch,
            commit_message=commit_message, create_pr=create_pr, allow_patterns=list(FILES),
        )
    )  # fmt: skip


def fetched(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, **options: Any
) -> Path:
    """The local folder of a repository on the hub; raises ``InputError`` where there is none."""
    hub = _hub()
    try:
        found = hub.snapshot_download(
            repo_id, repo_type="model", revision=revision, token=token,
            allow_patterns=list(FILES), **options,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"no predictor {repo_id!r} on the hub: {first}") from error
    if not folder.is_saved(found):
        raise InputError(f"{repo_id!r} on the hub holds no {folder.DESCRIPTION}: no predictor")
    return Path(found)


def fetched_spelling(spec: str) -> Path:
    """The local folder of ``hf:OWNER/NAME[@REVISION]``."""
    name, _, revision = spec.removeprefix(PREFIX).partition("@")
    return fetched(name, revision=revision or None)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("the hub needs a package: pip install huggingface_hub") from None
    return cast(Any, huggingface_hub)
