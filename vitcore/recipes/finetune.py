"""Going on from a trained model: on one's own photographs, or at a higher resolution.

The architecture is the parent's (`model.kind` is ``parent``); position embeddings are interpolated to the new grid and
a new head is made where the classes differ.
"""

from __future__ import annotations

from vitcore.recipe import AugmentConfig, ClassifyConfig, DataConfig, OptimConfig, ParentConfig, Recipe, TrainConfig


def finetune_224() -> Recipe:
    """Any trained model on one's own photographs, at 224 pixels.

    Paper: Dosovitskiy et al. 2021, 2010.11929; the protocol of B.1.1 (batch 512, cosine, no weight decay, clipping
        at 1), with AdamW and a learning rate that falls by layer (2106.08254, BEiT) in place of SGD
    Command: vit finetune finetune_224 --model REF --data URL
    Hardware: one GPU, or a CPU and patience
    Hours: varies; with the corpus
    Number: none; not published for this optimiser
    """
    return Recipe(
        name="finetune_224",
        data=DataConfig(image_size=224, augment=AugmentConfig(crop_scale=(0.3, 1.0))),
        model=ParentConfig(drop_path=0.1),
        objective=ClassifyConfig(label_smoothing=0.1),
        optim=OptimConfig(lr=5e-4, min_lr=1e-6, warmup="5%", weight_decay=0.0, clip_norm=1.0, layer_decay=0.75),
        train=TrainConfig(duration="20 epochs", batch_size=512),
    )


def finetune_384() -> Recipe:
    """A model trained at 224 pixels, continued on the same corpus at 384.

    Paper: Touvron et al. 2021, 2012.12877; the released settings: 30 epochs at a constant 5e-6, batch 512 (the idea
        is 1906.06423's)
    Command: vit finetune finetune_384 --model REF --data URL
    Hardware: eight V100 GPUs on one node (the paper's, section 6)
    Hours: 20; the paper's, for DeiT-B, 25 epochs
    Number: 83.1 % top-1; DeiT-B without distillation, from 81.8 % at 224 px (table 5)

    Distilled on at 384 px too, the paper's DeiT-B reaches 84.5 %; this recipe fine-tunes on labels alone.
    """
    base = finetune_224()
    return base.model_copy(
        update={
            "name": "finetune_384",
            "data": DataConfig(
                image_size=384,
                repeats=3,
                augment=AugmentConfig(randaug_layers=2, randaug_magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0),
            ),
            "optim": OptimConfig(lr=5e-6, min_lr=5e-6, warmup="0%", weight_decay=1e-8, clip_norm=None),
            # Ten epochs of three views a sample are DeiT's thirty.
            "train": TrainConfig(duration="10 epochs", batch_size=512),
        }
    )
