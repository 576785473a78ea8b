// The list of mechanisms.  The command line, the benchmarks and the generic tests iterate over it: a new mechanism is a
// header, a source, a test and one line here.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "foveate/attention/dense.h"
#include "foveate/attention/sparse/dhsa.h"
#include "foveate/attention/sparse/dhsa_blocks.h"
#include "foveate/attention/window.h"
#include "foveate/base/options.h"
#include "foveate/base/spec.h"

namespace foveate::attention {

using Mechanism = std::variant<Dense, Window, Dhsa, DhsaBlocks>;

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

Spec spec_of(const Mechanism& mechanism);
Kind kind_of(const Mechanism& mechanism);
// Prompts are cut at multiples of this many tokens.
int64_t chunk_multiple(const Mechanism& mechanism);
Attended attend(const Mechanism& mechanism, const Inputs& in);
std::unique_ptr<State> make_state(const Mechanism& mechanism, const StateOptions& options);

// One mechanism per layer from a layered spec string (base/spec.h).
std::vector<Mechanism> make_mechanisms(std::string_view layered_spec, int64_t layers);

}  // namespace foveate::attention
