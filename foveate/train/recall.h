// Small decoders that learn associative recall with a mechanism and its learned parts, from nothing.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "foveate/models/language/decoder.h"
#include "foveate/models/language/landmarks.h"
#include "foveate/train/recall_task.h"
#include "foveate/train/trainer.h"

namespace foveate::train {

// The same texts with a landmark at the end of every block.
RecallBatch with_landmarks(const RecallBatch& batch, const models::Landmarks& landmarks);

// The decoder (of Llama's architecture) and its texts.
struct RecallModel {
  static constexpr std::string_view name = "recall";

  int64_t batch = 16, layers = 2, width = 64, heads = 4, kv_heads = 2, feed_forward = 128;
  double sparsity = 0.5, near_sparsity = 1;

  static constexpr double kMost = 1 << 20;  // products of two of these numbers must fit

  static void fields(auto& self, auto&& visit) {
    visit("batch", self.batch, between(1, kMost), "texts of a step");
    visit("layers", self.layers, between(1, 4096), "of the decoder");
    visit("width", self.width, between(2, kMost), "of its residual stream");
    visit("heads", self.heads, between(1, kMost), "query heads; width is a multiple of 2 heads");
    visit("kv_heads", self.kv_heads, between(1, kMost), "key heads");
    visit("feed_forward", self.feed_forward, between(1, kMost), "width of the layers' MLPs");
    visit("sparsity", self.sparsity, between(0, 1), "flux: share of cheap layers to be reached in texts with a gap");
    visit("near_sparsity", self.near_sparsity, between(0, 1), "flux: the same in texts without");
  }
  void validate() const;
};

// What is scored: the model as trained; with the mechanisms' learned parts as they were before training; or (flux) with
// the router's decisions for each text given to the next one, so that as many layers are full, but not for a reason.
enum class Scored { trained, untrained_parts, shuffled_routes };

struct RecallScore {
  double loss = 0, accuracy = 0;                      // over all questions
  std::optional<double> far_accuracy, near_accuracy;  // over texts with the gap and without; none: no such texts
  std::optional<double> far_full, near_full;          // of layers whose flux has a router: the share of full ones
  std::optional<double> found;  // questions whose value some head of the last layer selects; none: it is flux
};

class Recall {
 public:
  // attention: a layered spec; with layers of `landmark` texts have landmarks, and steps attend to all blocks.  Throws
  // Error: options or mechanisms that do not fit, a flux whose phase, tau or seed is given: they are those of each
  // step.
  Recall(const RecallTask& task, const RecallModel& model, const std::string& attention, uint64_t seed);

  // All weights by their GGUF names, learned parts as layers.LAYER.MECHANISM.PART, and for routers of flux the two
  // multipliers.
  ParameterMap parameters() const;
  // What identifies the run beside the trainer's options.
  std::map<std::string, std::string> subject() const;
  // Cross-entropy of the answers, with flux and its penalty; steps: of the whole run, by which temperature falls.
  StepLoss loss(int64_t step, int64_t steps, uint64_t seed) const;
  // Over texts that no step has: `batches` of them.
  RecallScore score(Scored scored, int64_t batches) const;

  const models::Decoder& decoder() const { return *decoder_; }
  const std::vector<attention::Mechanism>& mechanisms() const { return mechanisms_; }
  bool has_routes() const { return has_routes_; }  // whether some layer is flux with a router

 private:
  std::vector<attention::Mechanism> with_start() const;
  RecallBatch texts(uint64_t seed, uint64_t stream) const;

  RecallTask task_;
  RecallModel model_;
  std::string attention_;
  uint64_t seed_;
  std::unique_ptr<models::Decoder> decoder_;
  std::vector<attention::Mechanism> mechanisms_;  // with learned parts
  std::vector<attention::Mechanism> trained_;     // the same as steps run them
  std::optional<models::Landmarks> landmarks_;    // that texts have, one token more
  at::Tensor lambda1_, lambda2_;                  // [2] of flux's penalty: texts with the gap, texts without
  bool has_routes_ = false;
};

}  // namespace foveate::train
