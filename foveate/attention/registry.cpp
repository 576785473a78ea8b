#include "foveate/attention/registry.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>

#include "foveate/attention/list.h"

namespace foveate::attention {
namespace {

// Calls visit(T{}) for every mechanism T of the list.
template <class Visit, class... T>
void for_each(std::type_identity<std::tuple<T...>>, Visit&& visit) {
  (visit(T{}), ...);
}

template <class Visit>
void for_each_mechanism(Visit&& visit) {
  for_each(std::type_identity<AllMechanisms>{}, visit);
}

}  // namespace

Mechanism Mechanism::with(Learned parts, const LayerShape& shape) const {
  check_learned(parts, learned_parts(shape), spec().name);
  Mechanism same = *this;
  same.learned_ = std::make_shared<const Learned>(std::move(parts));
  return same;
}

Attended Mechanism::attend(const Inputs& in) const {
  if (in.q.size(0) == 0) return Dense{}.attend(in);  // an empty batch: nothing to choose
  if (in.learned || !learned_) return self_->attend(in);
  Inputs all = in;
  all.learned = learned_.get();
  return self_->attend(all);
}

std::vector<MechanismInfo> list_mechanisms() {
  std::vector<MechanismInfo> infos;
  for_each_mechanism([&]<class T>(const T&) {
    infos.push_back({std::string(T::name), std::string(T::summary), T::kind, describe_options<T>()});
  });
  return infos;
}

std::string mechanisms_as_json(const std::vector<MechanismInfo>& infos) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const MechanismInfo& info : infos) {
    nlohmann::ordered_json options = nlohmann::ordered_json::array();
    for (const OptionInfo& option : info.options)
      options.push_back({{"name", option.name},
                         {"type", option.type},
                         {"default", option.default_value},
                         {"range", option.range},
                         {"doc", option.doc}});
    all.push_back({{"name", info.name},
                   {"class", enum_names(info.kind)[size_t(info.kind)]},
                   {"summary", info.summary},
                   {"options", options}});
  }
  return all.dump(2);
}

Mechanism make_mechanism(const Spec& spec) {
  std::optional<Mechanism> made;
  std::string names;
  for_each_mechanism([&]<class T>(const T&) {
    names += fmt::format(" {}", T::name);
    if (T::name != spec.name) return;
    T mechanism = parse_options<T>(spec);
    mechanism.validate();
    made = mechanism;
  });
  require(made.has_value(), "attention: unknown mechanism '{}', known:{}", spec.name, names);
  return *made;
}

std::vector<Mechanism> make_mechanisms(std::string_view layered_spec, int64_t layers) {
  std::vector<Mechanism> mechanisms;
  for (const Spec& spec : parse_layered_spec(layered_spec, layers)) mechanisms.push_back(make_mechanism(spec));
  return mechanisms;
}

}  // namespace foveate::attention
