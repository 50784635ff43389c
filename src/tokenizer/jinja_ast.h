// The syntax tree of a template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja_value.h"

namespace onepass::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

// A call's argument: `name` is empty for one by position.
struct ArgumentNode {
  std::string name;
  ExpressionPtr value;
};

struct Expression {
  enum class Kind {
    kConstant,     // constant
    kName,         // text
    kList,         // children
    kTuple,        // children
    kDict,         // children: key, value, key, value, ...
    kAttribute,    // children[0] . text
    kItem,         // children[0] [ children[1] ]
    kSlice,        // children[0] [ children[1] : children[2] : children[3] ], each of the three may be null
    kCall,         // children[0] ( arguments )
    kFilter,       // children[0] | text ( arguments )
    kTest,         // children[0] is text ( arguments )
    kUnary,        // text: "not", "-", "+"
    kBinary,       // text: "+", "-", "*", "/", "//", "%", "**", "~", "and", "or"
    kCompare,      // children[0] operators[0] children[1] operators[1] ...
    kConditional,  // children: value, condition, otherwise (may be null)
  };
  Kind kind = Kind::kConstant;
  int line = 0;
  int depth = 1;  // of the tree below
  Value constant;
  std::string text;
  std::vector<ExpressionPtr> children;
  std::vector<ArgumentNode> arguments;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    kText,      // text
    kPrint,     // expressions[0]
    kIf,        // expressions[i] guards bodies[i]; one more body is the else
    kFor,       // targets in expressions[0] if expressions[1] (may be null): bodies[0], else bodies[1]
    kSet,       // targets = expressions[0]
    kSetBlock,  // targets[0] = bodies[0], through the filters of `filters`
    kMacro,     // text ( parameters ): bodies[0]
    kFilter,    // bodies[0] through `filters`
    kWith,      // targets[i] = expressions[i]: bodies[0]
    kScope,     // bodies[0]: {% generation %}
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  std::vector<std::string> targets;  // "name", or "namespace.attribute" in kSet
  std::vector<ExpressionPtr> expressions;
  std::vector<Body> bodies;
  std::vector<ArgumentNode> parameters;  // a macro's: value is the default, may be null
  std::vector<Expression> filters;       // kFilter expressions without their operand
};

}  // namespace onepass::jinja
