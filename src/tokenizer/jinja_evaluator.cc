#include "tokenizer/jinja_evaluator.h"

#include <algorithm>
#include <optional>

#include "base/strings.h"
#include "tokenizer/jinja_builtins.h"
#include "tokenizer/jinja_operators.h"

namespace onepass::jinja {
namespace {

using Kind = Expression::Kind;

constexpr int64_t kMaxSteps = 5'000'000;
constexpr size_t kMaxItems = 1'000'000;
constexpr int kMaxDepth = 200;

// Names of one block; lookups go outwards.
struct Scope {
  Dict names;
  Scope* outer = nullptr;
};

enum class Flow { kNormal, kBreak, kContinue };

class Evaluator {
 public:
  explicit Evaluator(const Dict& variables) {
    globals_.names = global_functions();
    for (const auto& [name, value] : variables) assign(globals_.names, name, value);
    top_.outer = &globals_;
    scope_ = &top_;
  }

  std::string run(const Body& body) {
    execute(body);
    return std::move(out_);
  }

 private:
  // --- statements

  Flow execute(const Body& body) {
    for (const auto& statement : body) {
      const Flow flow = execute(*statement);
      if (flow != Flow::kNormal) return flow;
    }
    return Flow::kNormal;
  }

  Flow execute(const Statement& s) {
    step(s.line);
    switch (s.kind) {
      case Statement::Kind::kText:
        print(s.text, s.line);
        return Flow::kNormal;
      case Statement::Kind::kPrint:
        print(evaluate(*s.expressions[0]).str(), s.line);
        return Flow::kNormal;
      case Statement::Kind::kIf:
        for (size_t i = 0; i < s.bodies.size(); ++i) {
          if (i == s.expressions.size() || evaluate(*s.expressions[i]).truth()) return execute(s.bodies[i]);
        }
        return Flow::kNormal;
      case Statement::Kind::kFor:
        return for_loop(s);
      case Statement::Kind::kSet:
        assign_targets(s, evaluate(*s.expressions[0]));
        return Flow::kNormal;
      case Statement::Kind::kSetBlock:
        assign_targets(s, filtered(s));
        return Flow::kNormal;
      case Statement::Kind::kFilter:
        print(filtered(s).str(), s.line);
        return Flow::kNormal;
      case Statement::Kind::kMacro:
        assign(scope_->names, s.text, make_macro(s));
        return Flow::kNormal;
      case Statement::Kind::kWith: {
        Scope inner{.outer = scope_};
        for (size_t i = 0; i < s.targets.size(); ++i) assign(inner.names, s.targets[i], evaluate(*s.expressions[i]));
        return execute_in(inner, s.bodies[0]);
      }
      case Statement::Kind::kScope:
        return execute(s.bodies[0]);
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNormal;
  }

  Flow execute_in(Scope& scope, const Body& body) {
    Scope* const outer = std::exchange(scope_, &scope);
    const Flow flow = execute(body);
    scope_ = outer;
    return flow;
  }

  // A body's output instead of printing it.
  std::string captured(const Body& body, Scope& scope) {
    std::string outer = std::exchange(out_, "");
    execute_in(scope, body);
    return std::exchange(out_, std::move(outer));
  }

  Value filtered(const Statement& s) {
    Scope inner{.outer = scope_};
    Value value = captured(s.bodies[0], inner);
    for (const Expression& filter : s.filters) value = apply_filter(filter.text, value, arguments(filter.arguments));
    return value;
  }

  void assign_targets(const Statement& s, const Value& value) {
    if (s.targets.size() == 1) {
      const size_t dot = s.targets[0].find('.');
      if (dot == std::string::npos) {
        assign(scope_->names, s.targets[0], value);
        return;
      }
      const Value space = lookup(s.targets[0].substr(0, dot));
      if (!space.is_namespace()) fail(s.line, "only a namespace's attributes can be set, found " + space.type_name());
      at_line(s.line, [&] { check_attribute(value); });
      assign(space.dict(), s.targets[0].substr(dot + 1), value);
      return;
    }
    unpack(s, value, scope_->names);
  }

  void unpack(const Statement& s, const Value& value, Dict& names) {
    const List items = value.iterate();
    if (items.size() != s.targets.size()) {
      fail(s.line, str_cat("expected ", s.targets.size(), " values to unpack, found ", items.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) assign(names, s.targets[i], items[i]);
  }

  Flow for_loop(const Statement& s) {
    List items = at_line(s.line, [&] { return evaluate(*s.expressions[0]).iterate(); });
    const auto bind = [&](const Value& item, Dict& names) {
      if (s.targets.size() == 1) {
        assign(names, s.targets[0], item);
      } else {
        unpack(s, item, names);
      }
    };
    if (s.expressions[1] != nullptr) {
      std::erase_if(items, [&](const Value& item) {
        Scope inner{.outer = scope_};
        bind(item, inner.names);
        Scope* const outer = std::exchange(scope_, &inner);
        const bool keep = evaluate(*s.expressions[1]).truth();
        scope_ = outer;
        return !keep;
      });
    }
    if (items.empty()) return s.bodies.size() > 1 ? execute(s.bodies[1]) : Flow::kNormal;
    for (size_t i = 0; i < items.size(); ++i) {
      step(s.line);
      Scope inner{.outer = scope_};
      bind(items[i], inner.names);
      assign(inner.names, "loop", loop_variable(items, i));
      if (execute_in(inner, s.bodies[0]) == Flow::kBreak) break;
    }
    return Flow::kNormal;
  }

  static Value loop_variable(const List& items, size_t i) {
    const int64_t index = static_cast<int64_t>(i), size = static_cast<int64_t>(items.size());
    Dict loop = {{"index", index + 1},
                 {"index0", index},
                 {"revindex", size - index},
                 {"revindex0", size - index - 1},
                 {"first", i == 0},
                 {"last", index + 1 == size},
                 {"length", size},
                 {"depth", int64_t{1}},
                 {"depth0", int64_t{0}},
                 {"previtem", i > 0 ? items[i - 1] : Value(Value::Undefined{"loop.previtem"})},
                 {"nextitem", i + 1 < items.size() ? items[i + 1] : Value(Value::Undefined{"loop.nextitem"})}};
    loop.emplace_back("cycle", std::make_shared<Function>([index](const Arguments& a) {
                        if (a.positional.empty()) throw Error("loop.cycle: expected at least one value");
                        return a.positional[index % a.positional.size()];
                      }));
    return loop;
  }

  Value make_macro(const Statement& s) {
    // A macro sees the template's own names, not those of the block that calls it.
    return std::make_shared<Function>([this, &s](const Arguments& given) -> Value {
      if (given.positional.size() > s.parameters.size()) {
        throw Error(
            str_cat("macro ", s.text, " takes ", s.parameters.size(), " arguments, found ", given.positional.size()));
      }
      for (const auto& [name, value] : given.named) {
        const bool known = std::any_of(s.parameters.begin(), s.parameters.end(),
                                       [&, &n = name](const auto& p) { return p.name == n; });
        if (!known) throw Error(str_cat("macro ", s.text, " has no parameter ", name));
      }
      if (++depth_ > kMaxDepth) throw Error("macros call each other too deeply");
      Scope inner{.outer = &top_};
      Scope* const caller = std::exchange(scope_, &inner);
      for (size_t i = 0; i < s.parameters.size(); ++i) {
        const ArgumentNode& parameter = s.parameters[i];
        Value value = given.get(i, parameter.name.c_str(), Value::Undefined{parameter.name});
        const bool missing = i >= given.positional.size() && find(given.named, parameter.name) == nullptr;
        if (missing && parameter.value != nullptr) value = evaluate(*parameter.value);
        assign(inner.names, parameter.name, std::move(value));
      }
      std::string text = captured(s.bodies[0], inner);
      scope_ = caller;
      --depth_;
      return text;
    });
  }

  // --- expressions

  Value evaluate(const Expression& e) {
    step(e.line);
    if (++depth_ > 4 * kMaxDepth) fail(e.line, "the template calls too deeply");
    Value value = at_line(e.line, [&] { return compute(e); });
    --depth_;
    charge(value, /*is_new=*/e.kind == Kind::kBinary || e.kind == Kind::kFilter || e.kind == Kind::kCall, e.line);
    return value;
  }

  Value compute(const Expression& e) {
    const auto child = [&](size_t i) { return evaluate(*e.children[i]); };
    switch (e.kind) {
      case Kind::kConstant:
        return e.constant;
      case Kind::kName:
        return lookup(e.text);
      case Kind::kList:
      case Kind::kTuple: {
        List items;
        for (const auto& item : e.children) items.push_back(evaluate(*item));
        if (e.kind == Kind::kTuple) return Value::Tuple{std::make_shared<List>(std::move(items))};
        return items;
      }
      case Kind::kDict: {
        Dict dict;
        for (size_t i = 0; i < e.children.size(); i += 2) assign(dict, child(i).str(), child(i + 1));
        return dict;
      }
      case Kind::kAttribute:
        return attribute(child(0), e.text);
      case Kind::kItem:
        return get_item(child(0), child(1));
      case Kind::kSlice:
        return slice(e);
      case Kind::kCall:
        return call(e);
      case Kind::kFilter:
        return apply_filter(e.text, child(0), arguments(e.arguments));
      case Kind::kTest:
        return apply_test(e.text, child(0), arguments(e.arguments));
      case Kind::kUnary:
        return unary(e.text, child(0));
      case Kind::kBinary: {
        if (e.text == "and" || e.text == "or") {
          Value left = child(0);
          return left.truth() == (e.text == "or") ? left : child(1);
        }
        const Value left = child(0);
        return binary(e.text, left, child(1));
      }
      case Kind::kCompare:
        return compare(e);
      case Kind::kConditional:
        if (child(1).truth()) return child(0);
        return e.children[2] != nullptr ? child(2) : Value();
    }
    return Value();
  }

  Value lookup(const std::string& name) const {
    for (const Scope* scope = scope_; scope != nullptr; scope = scope->outer) {
      if (const Value* value = find(scope->names, name)) return *value;
    }
    return Value::Undefined{name};
  }

  static Value attribute(const Value& object, const std::string& name) {
    if (object.is_undefined()) throw Error(str_cat(object.type_name(), " has no attribute \"", name, "\""));
    if (has_method(object, name)) {
      return std::make_shared<Function>([object, name](const Arguments& a) { return call_method(object, name, a); });
    }
    return get_item(object, name);
  }

  Value call(const Expression& e) {
    const Value function = evaluate(*e.children[0]);
    if (!function.is_function()) throw Error(str_cat("expected a function to call, found ", function.type_name()));
    return function.function()(arguments(e.arguments));
  }

  Arguments arguments(const std::vector<ArgumentNode>& nodes) {
    Arguments result;
    for (const ArgumentNode& argument : nodes) {
      if (argument.name.empty()) {
        result.positional.push_back(evaluate(*argument.value));
      } else {
        assign(result.named, argument.name, evaluate(*argument.value));
      }
    }
    return result;
  }

  // Python's slices.
  Value slice(const Expression& e) {
    const Value object = evaluate(*e.children[0]);
    std::optional<int64_t> bounds[3];
    for (int i = 0; i < 3; ++i) {
      if (e.children[i + 1] == nullptr) continue;
      const Value bound = evaluate(*e.children[i + 1]);
      if (!bound.is_none()) bounds[i] = bound.integer();
    }
    if (!object.is_string() && !object.is_list()) throw Error(str_cat("cannot slice ", object.type_name()));
    const List items = object.iterate();
    const int64_t size = static_cast<int64_t>(items.size()), stride = bounds[2].value_or(1);
    if (stride == 0) throw Error("a slice's step cannot be 0");
    const auto clamp = [&](std::optional<int64_t> bound, int64_t fallback) {
      if (!bound) return fallback;
      const int64_t index = *bound < 0 ? *bound + size : *bound;
      return stride > 0 ? std::clamp<int64_t>(index, 0, size) : std::clamp<int64_t>(index, -1, size - 1);
    };
    const int64_t begin = clamp(bounds[0], stride > 0 ? 0 : size - 1), end = clamp(bounds[1], stride > 0 ? size : -1);
    List result;
    for (int64_t i = begin; stride > 0 ? i < end : i > end; i += stride) {
      result.push_back(items[i]);
      if (stride > size || stride < -size) break;
    }
    if (!object.is_string()) return result;
    std::string text;
    for (const Value& character : result) text += character.string();
    return text;
  }

  Value compare(const Expression& e) {
    Value left = evaluate(*e.children[0]);
    for (size_t i = 0; i < e.operators.size(); ++i) {
      Value right = evaluate(*e.children[i + 1]);
      const std::string& op = e.operators[i];
      bool holds = false;
      if (op == "==") {
        holds = left == right;
      } else if (op == "!=") {
        holds = !(left == right);
      } else if (op == "in") {
        holds = right.contains(left);
      } else if (op == "not in") {
        holds = !right.contains(left);
      } else {
        const int order = Value::compare(left, right);
        holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
      }
      if (!holds) return false;
      left = std::move(right);
    }
    return true;
  }

  // --- bounds and errors

  [[noreturn]] static void fail(int line, const std::string& message) {
    throw Error(str_cat("line ", line, ": ", message));
  }

  // Puts the line before the message of an error that has none yet.
  template <typename F>
  static auto at_line(int line, F&& function) -> decltype(function()) {
    try {
      return function();
    } catch (const Error& error) {
      const std::string message = error.what();
      if (message.rfind("line ", 0) == 0) throw;
      fail(line, message);
    }
  }

  void step(int line) {
    if (++steps_ > kMaxSteps) fail(line, "the template runs too long");
  }

  // A text that doubles in every round of a loop would outgrow the machine before the steps run out: what is handled
  // counts by its size too.
  void charge(const Value& value, bool is_new, int line) {
    if (value.is_string()) {
      if (value.string().size() > kMaxText) fail(line, "a text too long");
      steps_ += static_cast<int64_t>(value.string().size() / 256);
    } else if (value.is_list()) {
      if (value.list().size() > kMaxItems) fail(line, "a list too long");
      steps_ += static_cast<int64_t>(value.list().size() / (is_new ? 4 : 256));  // others are looked at, not copied
    }
  }

  void print(const std::string& text, int line) {
    if (out_.size() + text.size() > kMaxText) fail(line, "the template prints too much");
    out_ += text;
  }

  Scope globals_;
  Scope top_;
  Scope* scope_ = nullptr;
  std::string out_;
  int64_t steps_ = 0;
  int depth_ = 0;
};

}  // namespace

std::string evaluate(const Body& body, const Dict& variables) { return Evaluator(variables).run(body); }

}  // namespace onepass::jinja
