"""The commented configuration that `polydistill init` writes."""

STARTER = """\
# polydistill: several teachers, one student.
#   polydistill recommend {path} --write    which weighting, from the held-out text
#   polydistill check {path}    loads everything, runs one batch, says what the run promises and costs
#   polydistill train {path}    trains; run it again to go on after an interruption
# Every key can be overridden on the command line: polydistill train {path} training.learning_rate=1e-5

output: runs/first                     # folder of the run

student:
  model: path/or/hub-id                # a causal language model
  dtype: float32
  # lora: {{r: 16, alpha: 32}}           # train adapters instead of the whole model

teachers:                              # all share the student's tokenizer; any sizes
  code: path/or/hub-id
  maths: {{model: path/or/hub-id, dtype: bfloat16}}
  safe: {{model: path/or/hub-id, dtype: bfloat16}}
  # big: {{url: "http://host:8000/v1", model: name, api_key_env: TEACHER_KEY}}   # vLLM, or `polydistill serve`

data:                                  # TRL's formats: text, messages, or prompt and completion;
  train: train.jsonl                   # optional columns: task (a name), severity (0 to 1), teacher_id (a teacher)
                                       # also data/*.jsonl.gz, or a list of sources with a task and a share each
  evaluation: held-out.jsonl
  max_length: 1024

weighting:                             # factors, multiplied: each sees something else
  - kind: prefix_posterior             # context: who predicted the text so far
    share: 0.02                        # chance per token that another teacher takes over
    power: learned                     # as strong as it is of use, 0 to 2; 1 promises more
  - kind: softmax                      # token: who is sure here (never alone: the surest teacher can be wrong)
    signal: entropy
    temperature: 2.0
    spread: 4.0
    power: learned
  # - kind: task_prior                 # task: what is known beforehand
  #   table:
  #     algebra: {{maths: 3, code: 1, safe: 1}}

floor: 0.02                            # share of plain averaging that is mixed in

# safety:                              # where `severity` is high, the safer teacher counts more
#   kind: tilt
#   scores: {{safe: 1}}
#   strength: 8.0

objective:
  kind: forward_kl
  temperature: 1.0
  ce: 0.1                              # share of cross-entropy on the labels

training:
  epochs: 1
  batch_size: 8
  gradient_accumulation: 1
  learning_rate: 2.0e-5
  save_steps: 100
  # evaluation_steps: 100                # the held-out curve of the report
  # completions: {{every: 100}}            # what the student writes; by default after the last step only
  # extra: {{packing: true}}             # anything that trl.SFTConfig takes
"""
