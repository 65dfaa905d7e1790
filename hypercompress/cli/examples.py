"""Examples that the help of each command ends with."""

EXAMPLES = {
    "generate": """\
examples:
  hypercompress generate resnet18.a1_in1k student --params 0.4 --data photos
  hypercompress generate resnet18 student --macs 0.5 --checkpoint weights.safetensors \\
      --model-args '{"num_classes": 10, "in_chans": 1}' --input-size 1 28 28 --mean 0.286 --std 0.353 \\
      --data fashion_mnist_mini
  hypercompress generate resnet18.a1_in1k --pareto plots --data photos     which budget is worth it?""",
    "evaluate": """\
examples:
  hypercompress evaluate student --data photos
  hypercompress evaluate student --data photos --against resnet18.a1_in1k --json""",
    "bench": """\
examples:
  hypercompress bench student
  hypercompress bench student --against resnet18 --batch-size 1 --batch-size 16 --threads 1 --channels-last --layers""",
    "export": """\
examples:
  hypercompress export student student.onnx
  hypercompress export student student-int8.onnx --int8 --data photos
  hypercompress export student student.pt2""",
    "transfer": """\
examples:
  hypercompress transfer resnet18.a1_in1k student --data photos --shots 5
  hypercompress transfer student moved --data digits --shots 8 --steps 50""",
    "report": """\
examples:
  hypercompress report student
  hypercompress report student --html report.html""",
}
