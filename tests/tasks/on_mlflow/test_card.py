from dataclasses import replace

from tasks.on_mlflow.card import Card, Score, markdown, summary

CARD = Card(
    name="elpv",
    task="Tells functional from defective solar cells.",
    architecture="DeiT, patch 16, width 192, depth 12",
    classes=("functional", "defective"),
    parameters=5_600_000,
    image_size=96,
    recipe="deit_demo",
    recipe_digest="abc",
    training="30 epochs",
    dataset="elpv",
    dataset_digest="def",
    split="test (524 photographs)",
    scores=(Score("balanced accuracy", 0.7812, 0.74, 0.82), Score("images/s", 120.0)),
    teacher="models:/teacher/1",
    limits=("Seen one kind of camera only.",),
    license="CC-BY-NC-SA-4.0",
    papers=("2012.12877",),
)


def test_the_card_says_what_there_is_and_nothing_else():
    text = markdown(CARD, "models:/elpv/3")
    assert text.startswith("---\n")
    assert "| balanced accuracy | 0.7812 (0.7400 to 0.8200) |" in text
    assert "| images/s | 120.0000 |" in text
    assert "Distilled from `models:/teacher/1`" in text
    assert 'load_model("models:/elpv/3")' in text
    assert "tags: [vision-transformer, distillation, arxiv:2012.12877]" in text
    assert "Continued from" not in text
    assert "Intended use" not in text
    assert "models:/elpv@champion" in markdown(CARD)


def test_the_summary_fits_a_description():
    assert "Seen one kind of camera only." in summary(CARD)
    many = replace(CARD, classes=tuple(f"class {i}" for i in range(1000)), limits=("x" * 6000,))
    assert len(summary(many)) == 5000
    assert "and 980 more" in summary(replace(CARD, classes=many.classes))


def test_the_card_says_what_a_model_without_classes_is_for():
    backbone = replace(CARD, classes=(), kind="backbone")
    assert "pipeline_tag: image-feature-extraction" in markdown(backbone)
    assert "vit finetune finetune_224 --model models:/elpv/3" in markdown(backbone, "models:/elpv/3")
    assert "vit predict" not in markdown(backbone)
    clip = markdown(replace(CARD, classes=(), kind="clip"))
    assert "pipeline_tag: zero-shot-image-classification" in clip
    assert "--classes" in clip
    assert "pipeline_tag: image-classification" in markdown(CARD)
