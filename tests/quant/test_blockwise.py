from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import load, read, write
from model.checkpoint_stream import open_checkpoint
from model.errors import CheckpointError
from quant.blockwise import Blockwise
from quant.sampling import InputSample, Positions

NAMES = ["context.project", "decoder.blocks.0.cross.wq", "decoder.blocks.1.ffn.down", "heads.2"]


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_what_flows_through_is_what_flows_through_the_whole_model(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    positions = Positions.of([[5, 9, 2, 7], [30]])
    names = [*NAMES[:2], "decoder.blocks.1.ffn.shared.down" if which == "experts_dir" else NAMES[2], NAMES[3]]
    source = open_checkpoint(folder)
    blockwise = Blockwise(source)
    with InputSample(blockwise.model, names) as sample:
        prefixes = list(blockwise.run(positions, source.about.tokenizer.codes))
    assert prefixes == ["decoder.blocks.0.", "decoder.blocks.1.", ""]

    whole, codes = load(folder).model.float(), source.about.tokenizer.codes
    items, valid = positions.windows(whole.config.context_len)
    with InputSample(whole, names) as expected, torch.no_grad():
        whole(whole.context(codes[items.clamp_min(0)], valid), codes[positions.targets])
    for name in names:
        torch.testing.assert_close(sample.rows[name], expected.rows[name])


def test_blocks_are_in_memory_only_when_it_is_their_turn(dense_dir: Path) -> None:
    source = open_checkpoint(dense_dir)
    blockwise = Blockwise(source)
    blocks = blockwise.model.decoder.blocks
    for prefix in blockwise.run(Positions.of([[1]]), source.about.tokenizer.codes):
        here = [not next(block.parameters()).is_meta for block in blocks]
        assert here == [prefix == f"decoder.blocks.{layer}." for layer in range(len(blocks))]
    assert not blockwise.model.heads[0].weight.is_meta


def test_a_block_goes_also_when_the_caller_fails(dense_dir: Path) -> None:
    blockwise = Blockwise(open_checkpoint(dense_dir))
    with pytest.raises(ValueError, match="x"), blockwise.block(1):
        raise ValueError("x")
    assert all(parameter.is_meta for parameter in blockwise.model.decoder.parameters())


def test_tensors_that_do_not_fit_are_refused(dense_dir: Path, tmp_path: Path) -> None:
    files = read(dense_dir)
    del files.tensors["decoder.blocks.1.cross.wq.weight"]
    write(tmp_path / "x", files.tensors, files.config, files.catalogue, files.tokenizer)
    with pytest.raises(CheckpointError, match=r"missing tensor 'decoder\.blocks\.1\.cross\.wq\.weight'"):
        Blockwise(open_checkpoint(tmp_path / "x"))
