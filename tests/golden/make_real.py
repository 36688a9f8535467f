"""Makes the golden file of a real model: greedy answers of transformers.

In the environment that `make_golden.py` describes:

  golden-env/bin/python tests/golden/make_real.py DIRECTORY

`DIRECTORY` holds SmolLM2-135M-Instruct. The file names the digest of its
weights, because other roundings of them answer otherwise.
"""

import hashlib
import json
import pathlib
import sys

import torch
import transformers

HERE = pathlib.Path(__file__).parent
NUM_TOKENS = 64
PROMPTS = (
  "What is the capital of France?",
  "Write a haiku about the sea.",
  "What is 17 + 25?",
  "Name three primary colors.",
  "Explain what a prime number is in one sentence.",
  "Translate 'good morning' into Spanish.",
  "Who wrote Romeo and Juliet?",
  "Give me a recipe for pancakes.",
  "Why is the sky blue?",
  "List the planets of the solar system.",
  "Write a Python function that adds two numbers.",
  "What is the opposite of hot?",
  "Tell me a short story about a cat.",
  "How many legs does a spider have?",
  "What does DNA stand for?",
  "Summarize the water cycle.",
  "Is 91 a prime number?",
  "What year did the Second World War end?",
  "Suggest a name for a bakery.",
  "Convert 100 degrees Fahrenheit to Celsius.",
)


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  answers = []
  for prompt in PROMPTS:
    ids = tokenizer.apply_chat_template(
      [{"role": "user", "content": prompt}],
      add_generation_prompt=True,
      return_dict=False,
      return_tensors="pt",
    )
    with torch.no_grad():
      found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
      )
      logits = model(found).logits[0, ids.shape[1] - 1 : -1]
    top = logits.topk(2).values
    answers.append(
      {
        "prompt_ids": ids[0].tolist(),
        "completion_ids": found[0, ids.shape[1] :].tolist(),
        # How far the second best token was behind, at the closest call.
        "margin": float((top[:, 0] - top[:, 1]).min()),
      }
    )
  digest = hashlib.sha256((folder / "model.safetensors").read_bytes())
  golden = {"sha256": digest.hexdigest(), "prompts": PROMPTS}
  text = json.dumps({**golden, "answers": answers}, indent=None) + "\n"
  (HERE / "smollm2_greedy.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
  main()
