"""Trains a built-in model: `python -m zeroshift.pretrain MODEL`.

The same command again continues a killed training. Each model is written with a card: data, steps, time and
quality measured on people that no training saw. The generators' cards need the judge, the identity encoder's
needs the generator, and the reader needs judge and encoder: train those first. `guides` makes both CLIPs
that guide, in rounds of adaptations of the generator. `oracle` trains copies of a generator on the truth and
adds to its card how near they come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from zeroshift.clip.model import ClipModel
from zeroshift.files.checkpoints import load_generator_file, save_discriminator, save_generator, with_styles
from zeroshift.files.clips import load_clip_folder, save_clip
from zeroshift.files.faces import load_ir_se, save_ir_se
from zeroshift.files.registry import GENERATORS
from zeroshift.files.writing import file_sha256, write_json
from zeroshift.measure.features import read_attributes
from zeroshift.measure.metrics import distance_to_truth
from zeroshift.models.seeds import average_style, z_from_seeds
from zeroshift.models.stylegan2 import StyleGAN2Generator
from zeroshift.portraits.reader import load_reader, save_reader
from zeroshift.portraits.scene import LATENT_DIM, sample_scene
from zeroshift.portraits.shading import DOMAINS, TUNING, render
from zeroshift.pretrain import clips, dataset, ddpm, guides, identity, mistakes, oracle, reader
from zeroshift.pretrain.generator import GENERATOR_RECIPE, distil, finish, polish, regress
from zeroshift.pretrain.lengths import calibrate
from zeroshift.worlds.portraits import Portraits

ASSETS = Path(__file__).parents[1] / "portraits" / "assets"
TEST_SEEDS = range(512)  # training people come from another random stream, see dataset.shard_latents


def _eight_bit(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte()


def _test_people() -> tuple[Tensor, Tensor, Tensor]:
    z = z_from_seeds(TEST_SEEDS, LATENT_DIM)
    eight_bit = [_eight_bit(render(z, d)) for d in DOMAINS]
    return z, eight_bit[0], torch.stack(eight_bit[1:], 1)


def make_clip(name: str, data: Path, work: Path, out: Path) -> dict:
    """Trains, measures and saves a CLIP that learns from clean pictures; returns its card."""
    clip, seconds = clips.train(name, data, work)
    clip.name = f"portraits-{name}"
    calibrate(clip, dataset.load(data, 8, 8))
    recipe = clips.RECIPES[name]
    facts = {"pictures_seen": 2 * recipe.people * recipe.steps, "steps": recipe.steps}
    return _save_clip(clip, recipe, facts, seconds, clips.measure(clip, *_test_people()), out / name)


def _save_clip(
    clip: ClipModel, recipe: clips.ClipRecipe, facts: dict, seconds: float, quality: dict, folder: Path
) -> dict:
    """Writes a CLIP with its card, of which `facts` are those of its own training; returns the card."""
    card = {
        "model": clip.name,
        "data": "renders of 8000 people in 14 domains",
        **facts,
        "length_scale": clip.lengths.scale,
        "length_power": clip.lengths.power,
        "minutes": round(seconds / 60, 1),
        "attack_radius": recipe.attack,
        "seed": recipe.seed,
        "parameters": sum(p.numel() for p in clip.parameters()),
        "quality": quality,
    }
    save_clip(clip, folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def make_guides(data: Path, work: Path, out: Path, jobs: int) -> dict[str, dict]:
    """Trains, measures and saves the two CLIPs that guide; returns their cards by name.

    The minutes are those of a guide's own steps, in all rounds, without the adaptations between them.
    `truth_above` is the share of people whose true picture the guide scores above what an adaptation under
    both guides made: of the last round, on people of the training shards, in domains that are tuned on.
    """
    last = mistakes.train(data, work, jobs)
    records = [json.loads((last / f"{domain}.json").read_text("utf-8")) for domain in TUNING]
    z, photos, domains = _test_people()
    rounds = mistakes.ROUNDS
    cards = {}
    for place, name in enumerate(mistakes.NAMES):
        recipe = guides.RECIPES[name]
        clip = load_clip_folder(last / name)
        tuned = rounds.rounds * rounds.tune * (rounds.fresh + rounds.made)
        above = {record["domain"]: record["truth_above"][place] for record in records}
        facts = {
            "pictures_seen": 2 * (recipe.people * recipe.steps + tuned),
            "steps": recipe.steps,
            "rounds": rounds.rounds,
            "steps_per_round": rounds.tune,
            "truth_above": {"mean": round(sum(above.values()) / len(above), 3), **above},
        }
        seconds = torch.load(last / f"{name}.pt", weights_only=True)["seconds"]
        quality = clips.measure(clip, photos, domains, z)
        cards[name] = _save_clip(clip, recipe, facts, seconds, quality, out / name)
    return cards


@torch.no_grad()
def _accuracies(judge: ClipModel, pictures: Tensor, z: Tensor) -> dict[str, float]:
    """How often the judge, trained on renders only, reads each attribute right."""
    images = torch.cat([judge.encode_image(part) for part in pictures.split(64)])
    return read_attributes(judge, images, Portraits(), sample_scene(z).choice)


@torch.no_grad()
def measure_generator(generator: StyleGAN2Generator, judge: ClipModel, seeds: range = TEST_SEEDS) -> dict:
    """Distance to the render of the same seed, sharpness, and attributes read by the judge, on test seeds."""
    z = z_from_seeds(seeds, LATENT_DIM)
    truth = render(z)
    made = torch.cat([generator.synthesize(generator.map(part)) for part in z.split(32)])
    on_truth = _accuracies(judge, truth, z)
    on_made = _accuracies(judge, made.clamp(-1, 1), z)
    shares = {name: on_made[name] / on_truth[name] for name in on_truth}

    def edges(pictures: Tensor) -> float:
        return float(pictures.diff(dim=3).abs().mean() + pictures.diff(dim=2).abs().mean())

    return {
        "mean_absolute_error": distance_to_truth(made, truth),
        "edge_strength_over_render": edges(made) / edges(truth),
        "attribute_share_mean": sum(shares.values()) / len(shares),
        "attribute_share_min": min(shares.values()),
        "attributes_on_renders": on_truth,
        "attributes_on_pictures": on_made,
        "people": len(z),
    }


def make_generator(data: Path, work: Path, out: Path, shards: int) -> dict:
    """Trains, measures and saves the built-in generator and its discriminator; returns the card."""
    recipe = GENERATOR_RECIPE
    model, first = regress(data, work, shards)
    generator, second = distil(model, work)
    generator, critic, third = finish(generator, data, work, shards)
    generator, fourth = polish(model, generator, data, work, shards)
    with torch.no_grad():
        generator.latent_avg.copy_(average_style(generator))
    card = {
        "model": "portraits",
        "data": f"renders of {shards * dataset.SHARD} people, photo only",
        "regression_pictures": recipe.steps * recipe.batch,
        "finish_steps": recipe.finish_steps,
        "polish_steps": recipe.polish_steps,
        "minutes": dict(
            zip(
                ("regression", "mapping", "finish", "polish"),
                (round(t / 60, 1) for t in (first, second, third, fourth)),
                strict=True,
            )
        ),
        "parameters": sum(p.numel() for p in generator.parameters()),
        "quality": measure_generator(generator, load_clip_folder(out / "judge")),
    }
    save_generator(out / "generator.safetensors", generator, {"name": "portraits", "world": "portraits"})
    save_discriminator(out / "discriminator.safetensors", critic, {"name": "portraits", "world": "portraits"})
    (out / "generator.card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def make_ddpm(data: Path, work: Path, out: Path, shards: int, device: str = "cpu") -> dict:
    """Trains, measures and saves the built-in diffusion model; returns its card."""
    recipe = ddpm.RECIPE
    model, seconds = ddpm.train(data, work, shards, device=device)
    place = out / "ddpm.safetensors"
    save_generator(place, model.cpu().half(), {"name": "portraits-ddpm", "world": "portraits"})
    rounded, _ = load_generator_file(place)  # what is measured has the rounded weights of the file
    generator, _ = load_generator_file(out / "generator.safetensors")
    assert rounded.kind == "diffusion" and generator.kind == "styles"
    card = {
        "model": "portraits-ddpm",
        "data": f"renders of {shards * dataset.SHARD} people, photo only",
        "pictures_seen": recipe.batch * recipe.steps,
        "steps": recipe.steps,
        "minutes": round(seconds / 60, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "seed": recipe.seed,
        "parameters": sum(p.numel() for p in rounded.parameters()),
        "quality": ddpm.measure(rounded.eval().to(device), generator.eval(), load_clip_folder(out / "judge")),
    }
    (out / "ddpm.card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def make_identity(data: Path, work: Path, out: Path) -> dict:
    """Trains, measures and saves the identity encoder; returns its card."""
    network, seconds = identity.train(data, work)
    place = out / "identity.safetensors"
    recipe = identity.RECIPE
    save_ir_se(place, network, {"name": "portraits-identity", "world": "portraits"}, half=True)
    network, sha256 = load_ir_se(place)
    z, photos, domains = _test_people()
    generator = with_styles(
        load_generator_file(out / "generator.safetensors")[0], "the built-in generator", "the card"
    )
    with torch.no_grad():
        made = torch.cat([generator.eval().synthesize(generator.map(part)) for part in z.split(32)])
    card = {
        "model": "portraits-identity",
        "sha256": sha256,
        "data": "renders of 8000 people in 14 domains, worn as generators wear pictures",
        "domains_seen": list(DOMAINS),
        "pictures_seen": 2 * recipe.people * recipe.steps,
        "steps": recipe.steps,
        "minutes": round(seconds / 60, 1),
        "seed": recipe.seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "quality": {
            "people": len(z),
            "renders": identity.measure(
                network, photos, dict(zip(DOMAINS[1:], domains.unbind(1), strict=True))
            ),
            "built_in_generator": identity.measure(network, photos, {"photo": _eight_bit(made)})["photo"],
            "cosine_after_one_change": identity.measure_changes(network, z[:64]),
        },
    }
    (out / "identity.card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def make_reader(data: Path, work: Path, out: Path) -> dict:
    """Fits, measures and saves the attribute reader; returns its card."""
    network, encoder = load_ir_se(out / "identity.safetensors")
    heads, seconds = reader.train(network, data, work)
    save_reader(out / "reader.safetensors", heads, encoder)
    fitted = load_reader(out / "reader.safetensors", out / "identity.safetensors")
    z, photos, domains = _test_people()
    pictures = {"photo": photos} | dict(zip(DOMAINS[1:], domains.unbind(1), strict=True))
    card = {
        "model": "portraits-reader",
        "sha256": file_sha256(out / "reader.safetensors"),
        "encoder_sha256": encoder,
        "data": "renders of 8000 people in 14 domains, half of them worn as generators wear pictures",
        "minutes": round(seconds / 60, 1),
        "seed": reader.RECIPE.seed,
        "quality": reader.measure(fitted, load_clip_folder(out / "judge"), pictures, z),
    }
    (out / "reader.card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def make_oracle(generator: str, work: Path, out: Path, device: str = "cpu") -> dict:
    """Measures how near training on the truth brings a built-in generator, and writes it to the generator's
    card; returns the entry."""
    place = out / f"{Path(GENERATORS[generator]).stem}.card.json"
    found = oracle.measure(generator, work, device)
    card = json.loads(place.read_text("utf-8"))
    write_json(place, card | {"oracle": found})
    return found


def main() -> None:
    """Parses the command line and trains one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ("generator", "guides", *clips.RECIPES, "ddpm", "identity", "reader", "oracle")
    parser.add_argument("model", choices=models)
    parser.add_argument(
        "--data",
        type=Path,
        default=dataset.default_folder(),
        help="folder of the rendered shards; made when missing",
    )
    parser.add_argument(
        "--work", type=Path, default=dataset.default_folder() / "work", help="folder of checkpoints and logs"
    )
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder that receives the weights and cards")
    parser.add_argument(
        "--shards", type=int, default=24, help="thousands of people that a generator learns from"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where a diffusion model or an oracle is trained",
    )
    parser.add_argument(
        "--generator", choices=tuple(GENERATORS), default="portraits", help="generator of the oracle"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="adaptations under the guides that run at once, a core each"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.model == "generator":
        card = make_generator(args.data, args.work, args.out, args.shards)
    elif args.model == "ddpm":
        card = make_ddpm(args.data, args.work, args.out, args.shards, args.device)
    elif args.model == "guides":
        card = make_guides(args.data, args.work, args.out, args.jobs)
    elif args.model == "oracle":
        card = make_oracle(args.generator, args.work, args.out, args.device)
    elif args.model in ("identity", "reader"):
        card = {"identity": make_identity, "reader": make_reader}[args.model](args.data, args.work, args.out)
    else:
        card = make_clip(args.model, args.data, args.work, args.out)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
