#include "tokenizer/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "base/strings.h"
#include "tokenizer/jinja_lexer.h"

namespace onepass::jinja {
namespace {

using Kind = Expression::Kind;

// Nested expressions and blocks; a hostile template must not overflow the stack.
constexpr int kMaxDepth = 200;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Body run() {
    Body body = block({});
    if (peek().kind != Token::Kind::kEnd) fail("expected the template's end, found " + describe(peek()));
    return body;
  }

 private:
  // --- tokens

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(position_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[std::min(position_++, tokens_.size() - 1)]; }

  [[noreturn]] void fail(const std::string& message) const {
    throw Error(str_cat("line ", peek().line, ": ", message));
  }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case Token::Kind::kEnd:
        return "the template's end";
      case Token::Kind::kBlockEnd:
        return "%}";
      case Token::Kind::kPrintEnd:
        return "}}";
      default:
        return "\"" + token.text.substr(0, 40) + "\"";
    }
  }

  bool is_operator(const char* text, size_t ahead = 0) const {
    return peek(ahead).kind == Token::Kind::kOperator && peek(ahead).text == text;
  }
  bool is_name(const char* text, size_t ahead = 0) const {
    return peek(ahead).kind == Token::Kind::kName && peek(ahead).text == text;
  }
  bool accept_operator(const char* text) {
    if (!is_operator(text)) return false;
    ++position_;
    return true;
  }
  bool accept_name(const char* text) {
    if (!is_name(text)) return false;
    ++position_;
    return true;
  }
  void expect_operator(const char* text) {
    if (!accept_operator(text)) fail(str_cat("expected \"", text, "\", found ", describe(peek())));
  }
  void expect_name(const char* text) {
    if (!accept_name(text)) fail(str_cat("expected \"", text, "\", found ", describe(peek())));
  }
  void expect_block_end() {
    if (next().kind != Token::Kind::kBlockEnd) {
      --position_;
      fail("expected %}, found " + describe(peek()));
    }
  }
  std::string identifier() {
    if (peek().kind != Token::Kind::kName) fail("expected a name, found " + describe(peek()));
    return next().text;
  }

  struct DepthGuard {
    explicit DepthGuard(Parser& p) : parser(p) {
      if (++parser.depth_ > kMaxDepth) parser.fail("the template is nested too deeply");
    }
    ~DepthGuard() { --parser.depth_; }
    Parser& parser;
  };

  // --- statements

  // Statements up to a block tag named by one of `ends` (not consumed beyond its name) or the template's end.
  Body block(std::initializer_list<const char*> ends) {
    DepthGuard guard(*this);
    Body body;
    while (true) {
      const Token token = peek();
      if (token.kind == Token::Kind::kEnd) return body;
      ++position_;
      if (token.kind == Token::Kind::kText) {
        auto statement = make(Statement::Kind::kText, token.line);
        statement->text = token.text;
        body.push_back(std::move(statement));
      } else if (token.kind == Token::Kind::kPrintBegin) {
        auto statement = make(Statement::Kind::kPrint, token.line);
        statement->expressions.push_back(expression_or_tuple());
        if (next().kind != Token::Kind::kPrintEnd) {
          --position_;
          fail("expected }}, found " + describe(peek()));
        }
        body.push_back(std::move(statement));
      } else {
        const bool ended = std::any_of(ends.begin(), ends.end(), [&](const char* end) { return is_name(end); });
        if (ended) return body;
        body.push_back(statement());
      }
    }
  }

  // After a body: the name of the tag that ended it.
  std::string ending(const char* opened, int line) {
    if (peek().kind == Token::Kind::kEnd) throw Error(str_cat("line ", line, ": {% ", opened, " %} without its end"));
    return next().text;
  }

  static std::unique_ptr<Statement> make(Statement::Kind kind, int line) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  std::unique_ptr<Statement> statement() {
    const int line = peek().line;
    const std::string keyword = identifier();
    if (keyword == "if") return if_statement(line);
    if (keyword == "for") return for_statement(line);
    if (keyword == "set") return set_statement(line);
    if (keyword == "macro") return macro_statement(line);
    if (keyword == "with") return with_statement(line);
    if (keyword == "filter") {
      auto result = make(Statement::Kind::kFilter, line);
      result->filters = filter_chain(/*first_without_bar=*/true);
      expect_block_end();
      return body_of(std::move(result), "filter", "endfilter");
    }
    if (keyword == "generation") {
      expect_block_end();
      return body_of(make(Statement::Kind::kScope, line), "generation", "endgeneration");
    }
    if (keyword == "break" || keyword == "continue") {
      if (loops_ == 0) fail("{% " + keyword + " %} outside a loop");
      expect_block_end();
      return make(keyword == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue, line);
    }
    --position_;
    fail("unknown or unsupported tag {% " + keyword + " %}");
  }

  std::unique_ptr<Statement> body_of(std::unique_ptr<Statement> statement, const char* opened, const char* end) {
    statement->bodies.push_back(block({end}));
    ending(opened, statement->line);
    expect_block_end();
    return statement;
  }

  std::unique_ptr<Statement> if_statement(int line) {
    auto result = make(Statement::Kind::kIf, line);
    result->expressions.push_back(expression_or_tuple());
    expect_block_end();
    while (true) {
      result->bodies.push_back(block({"elif", "else", "endif"}));
      const std::string end = ending("if", line);
      if (end == "elif") {
        if (result->bodies.size() > result->expressions.size()) fail("{% elif %} after {% else %}");
        result->expressions.push_back(expression_or_tuple());
        expect_block_end();
      } else if (end == "else") {
        expect_block_end();
        result->bodies.push_back(block({"endif"}));
        ending("if", line);
        expect_block_end();
        return result;
      } else {
        expect_block_end();
        return result;
      }
    }
  }

  std::unique_ptr<Statement> for_statement(int line) {
    auto result = make(Statement::Kind::kFor, line);
    result->targets = target_list();
    expect_name("in");
    result->expressions.push_back(expression_or_tuple(/*with_condition=*/false));
    result->expressions.push_back(accept_name("if") ? expression() : nullptr);
    if (is_name("recursive")) fail("{% for ... recursive %} is not supported");
    expect_block_end();
    ++loops_;
    result->bodies.push_back(block({"else", "endfor"}));
    --loops_;
    if (ending("for", line) == "else") {
      expect_block_end();
      result->bodies.push_back(block({"endfor"}));
      ending("for", line);
    }
    expect_block_end();
    return result;
  }

  std::vector<std::string> target_list() {
    const bool parenthesis = accept_operator("(");
    std::vector<std::string> targets = {identifier()};
    while (accept_operator(",")) targets.push_back(identifier());
    if (parenthesis) expect_operator(")");
    return targets;
  }

  std::unique_ptr<Statement> set_statement(int line) {
    auto result = make(Statement::Kind::kSet, line);
    result->targets = {identifier()};
    if (accept_operator(".")) {
      result->targets[0] += "." + identifier();
    } else {
      while (accept_operator(",")) result->targets.push_back(identifier());
    }
    if (accept_operator("=")) {
      result->expressions.push_back(expression_or_tuple());
      expect_block_end();
      return result;
    }
    result->kind = Statement::Kind::kSetBlock;
    if (result->targets.size() > 1) fail("expected \"=\", found " + describe(peek()));
    result->filters = filter_chain(/*first_without_bar=*/false);
    expect_block_end();
    return body_of(std::move(result), "set", "endset");
  }

  std::unique_ptr<Statement> macro_statement(int line) {
    auto result = make(Statement::Kind::kMacro, line);
    result->text = identifier();
    expect_operator("(");
    while (!accept_operator(")")) {
      ArgumentNode parameter{identifier(), nullptr};
      if (accept_operator("=")) parameter.value = expression();
      result->parameters.push_back(std::move(parameter));
      if (!is_operator(")")) expect_operator(",");
    }
    expect_block_end();
    const int outer_loops = std::exchange(loops_, 0);
    result = body_of(std::move(result), "macro", "endmacro");
    loops_ = outer_loops;
    return result;
  }

  std::unique_ptr<Statement> with_statement(int line) {
    auto result = make(Statement::Kind::kWith, line);
    while (peek().kind == Token::Kind::kName) {
      result->targets.push_back(identifier());
      expect_operator("=");
      result->expressions.push_back(expression());
      if (!accept_operator(",")) break;
    }
    expect_block_end();
    return body_of(std::move(result), "with", "endwith");
  }

  // | name(arguments) | ...
  std::vector<Expression> filter_chain(bool first_without_bar) {
    std::vector<Expression> filters;
    while ((first_without_bar && filters.empty()) || accept_operator("|")) {
      Expression filter;
      filter.kind = Kind::kFilter;
      filter.line = peek().line;
      filter.text = identifier();
      if (accept_operator("(")) filter.arguments = arguments();
      filters.push_back(std::move(filter));
    }
    return filters;
  }

  // --- expressions, from the loosest binding to the tightest

  ExpressionPtr node(Kind kind, std::string text = "") const {
    auto result = std::make_unique<Expression>();
    result->kind = kind;
    result->line = peek().line;
    result->text = std::move(text);
    return result;
  }

  ExpressionPtr with_children(ExpressionPtr parent, ExpressionPtr a, ExpressionPtr b = nullptr) const {
    parent->line = a->line;
    // Long chains (a + b + c ..., x | f | g ...) nest to the left without recursion here, but not where they are run.
    parent->depth = 1 + std::max(a->depth, b != nullptr ? b->depth : 0);
    if (parent->depth > 3 * kMaxDepth) fail("an expression too long");
    parent->children.push_back(std::move(a));
    if (b != nullptr) parent->children.push_back(std::move(b));
    return parent;
  }

  ExpressionPtr expression_or_tuple(bool with_condition = true) {
    ExpressionPtr first = with_condition ? expression() : disjunction();
    if (!is_operator(",")) return first;
    ExpressionPtr tuple = with_children(node(Kind::kTuple), std::move(first));
    while (accept_operator(",")) {
      const Token::Kind kind = peek().kind;
      if (kind == Token::Kind::kBlockEnd || kind == Token::Kind::kPrintEnd || is_operator(")")) break;
      tuple->children.push_back(with_condition ? expression() : disjunction());
    }
    return tuple;
  }

  ExpressionPtr expression() {
    DepthGuard guard(*this);
    ExpressionPtr value = disjunction();
    while (accept_name("if")) {
      ExpressionPtr conditional = with_children(node(Kind::kConditional), std::move(value), disjunction());
      conditional->children.push_back(accept_name("else") ? expression() : nullptr);
      value = std::move(conditional);
    }
    return value;
  }

  ExpressionPtr disjunction() {
    ExpressionPtr left = conjunction();
    while (accept_name("or")) left = with_children(node(Kind::kBinary, "or"), std::move(left), conjunction());
    return left;
  }

  ExpressionPtr conjunction() {
    ExpressionPtr left = negation();
    while (accept_name("and")) left = with_children(node(Kind::kBinary, "and"), std::move(left), negation());
    return left;
  }

  ExpressionPtr negation() {
    DepthGuard guard(*this);
    if (accept_name("not")) return with_children(node(Kind::kUnary, "not"), negation());
    return comparison();
  }

  ExpressionPtr comparison() {
    ExpressionPtr first = sum();
    ExpressionPtr result;
    while (true) {
      std::string op;
      if (peek().kind == Token::Kind::kOperator) {
        for (const char* candidate : {"==", "!=", "<=", ">=", "<", ">"}) {
          if (peek().text == candidate) op = candidate;
        }
        if (!op.empty()) ++position_;
      } else if (accept_name("in")) {
        op = "in";
      } else if (is_name("not") && is_name("in", 1)) {
        position_ += 2;
        op = "not in";
      }
      if (op.empty()) return result != nullptr ? std::move(result) : std::move(first);
      if (result == nullptr) result = with_children(node(Kind::kCompare), std::move(first));
      result->operators.push_back(op);
      result->children.push_back(sum());
    }
  }

  ExpressionPtr sum() {
    ExpressionPtr left = concatenation();
    while (is_operator("+") || is_operator("-")) {
      const std::string op = next().text;
      left = with_children(node(Kind::kBinary, op), std::move(left), concatenation());
    }
    return left;
  }

  ExpressionPtr concatenation() {
    ExpressionPtr left = product();
    while (accept_operator("~")) left = with_children(node(Kind::kBinary, "~"), std::move(left), product());
    return left;
  }

  ExpressionPtr product() {
    ExpressionPtr left = power();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      const std::string op = next().text;
      left = with_children(node(Kind::kBinary, op), std::move(left), power());
    }
    return left;
  }

  ExpressionPtr power() {
    ExpressionPtr left = unary(/*with_filters=*/true);
    while (accept_operator("**")) {
      left = with_children(node(Kind::kBinary, "**"), std::move(left), unary(/*with_filters=*/true));
    }
    return left;
  }

  ExpressionPtr unary(bool with_filters) {
    DepthGuard guard(*this);
    ExpressionPtr result;
    if (is_operator("-") || is_operator("+")) {
      const std::string op = next().text;
      result = with_children(node(Kind::kUnary, op), unary(/*with_filters=*/false));
    } else {
      result = postfix(primary());
    }
    return with_filters ? filters_and_tests(std::move(result)) : std::move(result);
  }

  ExpressionPtr postfix(ExpressionPtr value) {
    while (true) {
      if (accept_operator(".")) {
        if (peek().kind == Token::Kind::kInteger) {
          ExpressionPtr index = node(Kind::kConstant);
          index->constant = to_integer(next().text);
          value = with_children(node(Kind::kItem), std::move(value), std::move(index));
        } else {
          value = with_children(node(Kind::kAttribute, identifier()), std::move(value));
        }
      } else if (accept_operator("[")) {
        value = subscript(std::move(value));
      } else if (accept_operator("(")) {
        ExpressionPtr call = with_children(node(Kind::kCall), std::move(value));
        call->arguments = arguments();
        value = std::move(call);
      } else {
        return value;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr value) {
    ExpressionPtr first = is_operator(":") ? nullptr : expression();
    if (!is_operator(":")) {
      expect_operator("]");
      return with_children(node(Kind::kItem), std::move(value), std::move(first));
    }
    ExpressionPtr slice = with_children(node(Kind::kSlice), std::move(value));
    slice->children.push_back(std::move(first));
    for (int part = 0; part < 2; ++part) {
      const bool present = accept_operator(":") && !is_operator(":") && !is_operator("]");
      slice->children.push_back(present ? expression() : nullptr);
    }
    expect_operator("]");
    return slice;
  }

  ExpressionPtr filters_and_tests(ExpressionPtr value) {
    while (true) {
      if (is_operator("|")) {
        for (Expression& filter : filter_chain(/*first_without_bar=*/false)) {
          value = with_children(std::make_unique<Expression>(std::move(filter)), std::move(value));
        }
      } else if (accept_name("is")) {
        value = test(std::move(value));
      } else if (is_operator("(") || is_operator(".") || is_operator("[")) {
        value = postfix(std::move(value));
      } else {
        return value;
      }
    }
  }

  ExpressionPtr test(ExpressionPtr value) {
    const bool negated = accept_name("not");
    ExpressionPtr result = with_children(node(Kind::kTest, identifier()), std::move(value));
    if (accept_operator("(")) {
      result->arguments = arguments();
    } else if (begins_test_argument()) {
      result->arguments.push_back({"", postfix(primary())});
    }
    return negated ? with_children(node(Kind::kUnary, "not"), std::move(result)) : std::move(result);
  }

  bool begins_test_argument() const {
    switch (peek().kind) {
      case Token::Kind::kName:
        return !is_name("else") && !is_name("or") && !is_name("and") && !is_name("is") && !is_name("if") &&
               !is_name("in") && !is_name("not");
      case Token::Kind::kString:
      case Token::Kind::kInteger:
      case Token::Kind::kFloat:
        return true;
      case Token::Kind::kOperator:
        return is_operator("[") || is_operator("{");
      default:
        return false;
    }
  }

  // After "(": up to and with ")".
  std::vector<ArgumentNode> arguments() {
    std::vector<ArgumentNode> result;
    while (!accept_operator(")")) {
      if (is_operator("*") || is_operator("**")) fail("arguments by * and ** are not supported");
      ArgumentNode argument;
      if (peek().kind == Token::Kind::kName && is_operator("=", 1)) {
        argument.name = next().text;
        ++position_;
      } else if (!result.empty() && !result.back().name.empty()) {
        fail("an argument by position after one by name");
      }
      argument.value = expression();
      result.push_back(std::move(argument));
      if (!is_operator(")")) expect_operator(",");
    }
    return result;
  }

  int64_t to_integer(const std::string& digits) const {
    int64_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc()) fail("a whole number too large: " + digits);
    return value;
  }

  ExpressionPtr primary() {
    const Token token = next();
    ExpressionPtr result = node(Kind::kConstant);
    result->line = token.line;
    switch (token.kind) {
      case Token::Kind::kName:
        if (token.text == "true" || token.text == "True") {
          result->constant = true;
        } else if (token.text == "false" || token.text == "False") {
          result->constant = false;
        } else if (token.text == "none" || token.text == "None") {
          result->constant = Value::None{};
        } else {
          result->kind = Kind::kName;
          result->text = token.text;
        }
        return result;
      case Token::Kind::kString: {
        std::string text = token.text;
        while (peek().kind == Token::Kind::kString) text += next().text;  // adjacent strings are one
        result->constant = text;
        return result;
      }
      case Token::Kind::kInteger:
        result->constant = to_integer(token.text);
        return result;
      case Token::Kind::kFloat: {
        double value = 0;
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        result->constant = value;
        return result;
      }
      case Token::Kind::kOperator:
        if (token.text == "(") return parenthesis(std::move(result));
        if (token.text == "[") {
          result->kind = Kind::kList;
          while (!accept_operator("]")) {
            result->children.push_back(expression());
            if (!is_operator("]")) expect_operator(",");
          }
          return result;
        }
        if (token.text == "{") {
          result->kind = Kind::kDict;
          while (!accept_operator("}")) {
            result->children.push_back(expression());
            expect_operator(":");
            result->children.push_back(expression());
            if (!is_operator("}")) expect_operator(",");
          }
          return result;
        }
        break;
      default:
        break;
    }
    --position_;
    fail("expected an expression, found " + describe(token));
  }

  ExpressionPtr parenthesis(ExpressionPtr tuple) {
    tuple->kind = Kind::kTuple;
    if (accept_operator(")")) return tuple;
    ExpressionPtr inner = expression_or_tuple();
    expect_operator(")");
    return inner;
  }

  const std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Body parse(const std::string& source) { return Parser(tokenize(source)).run(); }

}  // namespace onepass::jinja
