// Learned parts of mechanisms in single layers of a frozen model, which read what the layers are given.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "foveate/models/language/decoder.h"
#include "foveate/train/trainer.h"

namespace foveate::train {

struct TextOptions {
  static constexpr std::string_view name = "text";

  int64_t length = 1024, held_out = 4;

  static constexpr double kMost = 1 << 30;  // the product of both must fit

  static void fields(auto& self, auto&& visit) {
    visit("length", self.length, between(16, kMost), "tokens of a window of the text, read by the model as one");
    visit("held_out", self.held_out, between(1, kMost),
          "last windows of the text, which no step reads: what is scored");
  }
};

// What learned parts of layers learn.
struct LayerTask {
  std::string name;       // of the run
  std::string mechanism;  // that has the parts
  // What the parts of a layer are to make small, from what the frozen model gives the layer: a scalar with a graph.
  // `dense` is what dense attention gives there.
  using Loss = std::function<at::Tensor(const attention::Mechanism&, const attention::Inputs&,
                                        const attention::Attended& dense)>;
  Loss loss;
  // More to report, as means over layers and windows; empty: nothing.
  using Notes = std::function<std::map<std::string, double>(const attention::Mechanism&, const attention::Inputs&,
                                                            const attention::Attended& dense)>;
  Notes notes = {};
  // The same mechanism without learned parts, to compare with; empty: there is none.
  std::function<attention::Mechanism(const attention::Mechanism&)> unlearned = {};
};

struct LayerScore {
  double loss = 0;       // mean over layers and held-out windows; NaN without learned parts
  double kept_mass = 0;  // of dense attention's weight, on the keys that the mechanism lets rows see (eval/kept_mass.h)
  std::vector<double> kept_mass_by_layer;
  std::map<std::string, double> notes;  // more, by name
};

class LayerTraining {
 public:
  // mechanisms: one per layer; those with learned parts learn, the others only stand in their layers.  The model itself
  // runs densely, so that every layer learns from what it is given without approximations below.  tokens: of a text,
  // without a first token of its own.
  // Throws Error: a text shorter than the held-out windows and one more, no layer with the task's
  // mechanism, other mechanisms with learned parts.
  LayerTraining(const models::Decoder& decoder, std::vector<attention::Mechanism> mechanisms,
                std::vector<int32_t> tokens, std::optional<int32_t> first_token, const TextOptions& options,
                LayerTask task);

  ParameterMap parameters() const;                   // layers.LAYER.MECHANISM.PART
  StepLoss loss(int64_t step, uint64_t seed) const;  // of one window at a random place; the mean over layers
  LayerScore score(const std::vector<attention::Mechanism>& mechanisms) const;  // on the held-out windows
  const std::vector<attention::Mechanism>& mechanisms() const { return mechanisms_; }
  uint64_t text_hash() const;  // tells texts apart

 private:
  using Visit = std::function<void(const attention::Inputs&, const attention::Attended& dense)>;
  void read_window(int64_t first, const Visit& visit) const;

  models::Decoder decoder_;  // its layers up to the last that learns
  std::vector<attention::Mechanism> mechanisms_;
  std::vector<int32_t> tokens_;
  std::optional<int32_t> first_token_;
  TextOptions options_;
  LayerTask task_;
  int64_t layers_trained_ = 0;
};

// The first stage of training of hisa (sparse/hisa.h): KL of the indexer's softmax from dense attention's weights.
LayerTask indexer_task();

// Of logits [B, L], targets [B, L] bool and which gaps count, valid [L] bool: `precision`, `recall` and `f1` of gaps
// whose logit is > 0, and `boundaries`, the share of true ones among the gaps that count; 0 where nothing is said or
// true.
std::map<std::string, double> boundary_notes(const at::Tensor& logits, const at::Tensor& targets,
                                             const at::Tensor& valid);

// DHSA's boundary predictors (sparse/boundary_training.h): focal cross-entropy of the gaps whose ratio is >= 2.  Notes:
// those above, and `chunks` of a window, cut at logits above dhsa's own theta.
LayerTask boundaries_task();

}  // namespace foveate::train
