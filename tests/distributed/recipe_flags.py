"""The text recipe at tiny size, with the shipped tokenizer and judge."""

FLAGS = [
    "--data.length=16",
    "--precision=fp32",
    "--distill.loop.num-steps=3",
    "--distill.batch-size=8",
    "--distill.accumulate=2",
    "--distill.method.group-size=4",
    "--distill.method.log-ratio-warmup=1",
    "--distill.method.path-steps", "2", "4",
    "--distill.discriminator-every=2",
    "--discriminator.updates=2", "--discriminator.pool=4", "--discriminator.batch-size=2",
    "--evaluate.num-samples=3",
    "--evaluate.teacher-temperatures", "1.0",
    "--evaluate.student-temperatures", "1.0", "1.1",
    "--evaluate.batch-size=1",
    "--evaluate.seeds", "0", "1",
    "--evaluate.steps", "2",
    "--evaluate.guided-steps", "2",
    "--evaluate.frontier-steps=2",
    "--evaluate.teacher-frontier-steps", "2",
]  # fmt: skip
