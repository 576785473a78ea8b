// Mechanisms by name: made from spec strings, listed, run.  list.h says which there are; who includes this file does
// not see their structs.
#pragma once

#include <concepts>
#include <memory>
#include <string>
#include <vector>

#include "foveate/attention/mechanism.h"
#include "foveate/base/options.h"
#include "foveate/base/spec.h"

namespace foveate::attention {

// A mechanism with its options and perhaps the learned parts of one layer, as a value: any struct that keeps the
// contract in mechanism.h.
class Mechanism {
 public:
  template <class T>
  requires(!std::same_as<T, Mechanism>) Mechanism(T options)
      : self_(std::make_shared<const Model<T>>(std::move(options))) {}

  Spec spec() const { return self_->spec(); }
  Kind kind() const { return self_->kind(); }
  int64_t chunk_multiple() const { return self_->chunk_multiple(); }  // prompts are cut at multiples of so many tokens
  std::vector<LearnedPart> learned_parts(const LayerShape& shape) const { return self_->learned_parts(shape); }
  // The same one with learned parts.  Throws Error: not the parts that it has in a layer of this shape.
  Mechanism with(Learned parts, const LayerShape& shape) const;
  const Learned* learned() const { return learned_.get(); }  // null: none were given

  Attended attend(const Inputs& in) const;  // with the mechanism's own learned parts where the inputs have none
  std::unique_ptr<State> make_state(const StateOptions& options) const { return self_->make_state(options); }

 private:
  struct Concept {
    virtual ~Concept() = default;
    virtual Spec spec() const = 0;
    virtual Kind kind() const = 0;
    virtual int64_t chunk_multiple() const = 0;
    virtual std::vector<LearnedPart> learned_parts(const LayerShape& shape) const = 0;
    virtual Attended attend(const Inputs& in) const = 0;
    virtual std::unique_ptr<State> make_state(const StateOptions& options) const = 0;
  };

  template <class T>
  struct Model final : Concept {
    explicit Model(T options) : options_(std::move(options)) {}
    Spec spec() const override { return to_spec(options_); }
    Kind kind() const override {
      if constexpr (requires { options_.own_kind(); }) return options_.own_kind();
      return options_.kind;
    }
    int64_t chunk_multiple() const override {
      if constexpr (requires { options_.chunk_multiple(); }) return options_.chunk_multiple();
      return 1;
    }
    std::vector<LearnedPart> learned_parts(const LayerShape& shape) const override {
      if constexpr (requires { options_.learned_parts(shape); }) return options_.learned_parts(shape);
      return {};
    }
    Attended attend(const Inputs& in) const override { return options_.attend(in); }
    std::unique_ptr<State> make_state(const StateOptions& options) const override {
      return options_.make_state(options);
    }
    T options_;
  };

  std::shared_ptr<const Concept> self_;
  std::shared_ptr<const Learned> learned_;
};

struct MechanismInfo {
  std::string name, summary;
  Kind kind;
  std::vector<OptionInfo> options;
};
std::vector<MechanismInfo> list_mechanisms();
// For programs: a list of {name, class, summary, options: [{name, type, default, range, doc}]}.
std::string mechanisms_as_json(const std::vector<MechanismInfo>& infos);

// Throws Error: unknown mechanism (names the known ones), unknown or illegal option.
Mechanism make_mechanism(const Spec& spec);

// One mechanism per layer from a layered spec string (base/spec.h).
std::vector<Mechanism> make_mechanisms(std::string_view layered_spec, int64_t layers);

}  // namespace foveate::attention
