// A training run: a loss, an optimizer, checkpoints from which it goes on with the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "foveate/train/optimizer.h"

namespace foveate::train {

// What one step is to make smaller.  Everything random must come from Random(seed, step) or streams derived from it
// (base/random.h): then the step's number is all the random state there is.
struct StepLoss {
  at::Tensor loss;                      // a scalar with a graph
  int64_t tokens = 0;                   // read
  std::map<std::string, double> notes;  // more to report, by name
};
using LossOf = std::function<StepLoss(int64_t step, uint64_t seed)>;

struct StepReport {
  int64_t step = 0;  // steps done, this one included
  double loss = 0, learning_rate = 0, gradient_norm = 0, seconds = 0;
  int64_t tokens = 0;
  std::map<std::string, double> notes;
};

class Trainer {
 public:
  // `subject` says in names and values what is trained beside the options: a checkpoint of another subject is refused.
  // `buffers` are what the loss itself changes from step to step (averages of a batch norm), any dtype, in place.
  Trainer(ParameterMap parameters, LossOf loss, TrainOptions options, std::map<std::string, std::string> subject,
          TensorMap buffers = {});

  // Throws Error: a loss or gradients that are not finite; the parameters then stay as they were.
  StepReport step();
  int64_t steps_done() const { return optimizer_.steps(); }
  bool is_done() const { return steps_done() >= options_.steps; }
  const TrainOptions& options() const { return options_; }

  // A checkpoint: a safetensors file of parameters, both moments, buffers, the options, the subject and the steps done,
  // written whole or not at all.  A run that goes on from it gives the same bits as one that never stopped (on as many
  // threads: torch's products may add in another order on others).
  void save(const std::string& path) const;
  // Throws Error: a damaged file, no checkpoint, or one of other options, another subject or other parameters (says
  // which); the run is then as it was before.
  void load(const std::string& path);

 private:
  std::map<std::string, std::string> metadata() const;
  TensorMap state() const;

  TrainOptions options_;
  LossOf loss_;
  std::map<std::string, std::string> subject_;
  TensorMap buffers_;
  AdamW optimizer_;
};

// How a run is watched and kept.
struct RunOptions {
  std::string checkpoint;                          // written every `save_every` steps and at the end; empty: never
  int64_t save_every = 0;                          // 0: only at the end
  bool resumes = false;                            // from `checkpoint`; a missing file is an error
  std::function<void(const StepReport&)> observe;  // sees every step; may throw to stop
};

// All steps that are left.  Where `observe` throws, a checkpoint of the steps done is written first.  Returns the
// report of the last step; without a step to do one of the steps done alone.
StepReport run(Trainer& trainer, const RunOptions& options);

}  // namespace foveate::train
