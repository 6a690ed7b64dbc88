"""The text recipe at tiny size, with the shipped teacher and judge."""

FLAGS = [
    "--data.length=16",
    "--precision=fp32",
    "--distill.loop.num-steps=4",
    "--distill.batch-size=8",
    "--distill.accumulate=2",
    "--distill.method.group-size=4",
    "--distill.method.ratio-warmup=1",
    "--distill.method.path-steps", "2", "4",
    "--distill.discriminator-every=2",
    "--evaluate.num-samples=6",
    "--evaluate.batch-size=2",
    "--evaluate.seeds", "0", "1",
    "--evaluate.steps", "2",
    "--evaluate.guided-steps", "2",
    "--evaluate.frontier-steps=2",
    "--evaluate.teacher-frontier-steps", "4",
]  # fmt: skip
