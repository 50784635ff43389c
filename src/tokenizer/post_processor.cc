#include "tokenizer/post_processor.h"

#include "tokenizer/vocab.h"

namespace onepass {
namespace {

// ["</s>", 2]
StatusOr<int32_t> token_pair(const json& value, const char* key, const std::string& where) {
  const json& pair = json_member(value, key);
  if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_unsigned() ||
      pair[1].get<uint64_t>() > uint64_t{kMaxTokenId}) {
    return invalid_argument(where, ": ", key, ": expected [token, id]");
  }
  return pair[1].get<int32_t>();
}

}  // namespace

Status PostProcessor::read(const json& value, const std::string& where, int depth, PostProcessor& out) {
  if (value.is_null()) return ok_status();
  if (depth > 16) return invalid_argument(where, ": nested too deeply");
  ONEPASS_ASSIGN_OR_RETURN(const std::string type, string_field(value, "type", where));
  if (type == "ByteLevel") return ok_status();
  if (type == "Sequence") {
    const json& list = json_member(value, "processors");
    if (!list.is_array()) return invalid_argument(where, ": processors: expected a list");
    for (const json& item : list) ONEPASS_RETURN_IF_ERROR(read(item, where, depth + 1, out));
    return ok_status();
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    ONEPASS_ASSIGN_OR_RETURN(const int32_t cls, token_pair(value, "cls", where));
    ONEPASS_ASSIGN_OR_RETURN(const int32_t sep, token_pair(value, "sep", where));
    out.before_.insert(out.before_.begin(), cls);
    out.behind_.push_back(sep);
    return ok_status();
  }
  if (type != "TemplateProcessing") {
    return unimplemented(
        where,
        ": type: expected TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel or Sequence, found \"", type,
        "\"");
  }
  const json& single = json_member(value, "single");
  const json& special = json_member(value, "special_tokens");
  if (!single.is_array()) return invalid_argument(where, ": single: expected a list");
  std::vector<int32_t> before, behind;
  bool seen = false;
  for (const json& item : single) {
    if (item.is_object() && item.contains("Sequence")) {
      if (seen) return invalid_argument(where, ": single: expected one Sequence, found two");
      seen = true;
      continue;
    }
    ONEPASS_ASSIGN_OR_RETURN(const std::string name,
                             string_field(json_member(item, "SpecialToken"), "id", where + ": single"));
    const json& ids = json_member(json_member(special, name.c_str()), "ids");
    if (!ids.is_array()) return invalid_argument(where, ": special_tokens: expected ids of \"", name, "\", found none");
    for (const json& id : ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{kMaxTokenId}) {
        return invalid_argument(where, ": special_tokens: \"", name, "\": expected token ids");
      }
      (seen ? behind : before).push_back(id.get<int32_t>());
    }
  }
  if (!seen) return invalid_argument(where, ": single: expected a Sequence, found none");
  out.before_.insert(out.before_.begin(), before.begin(), before.end());
  out.behind_.insert(out.behind_.end(), behind.begin(), behind.end());
  return ok_status();
}

StatusOr<PostProcessor> PostProcessor::from_json(const json& value, const std::string& where) {
  PostProcessor result;
  ONEPASS_RETURN_IF_ERROR(read(value, where, 0, result));
  return result;
}

std::vector<int32_t> PostProcessor::apply(std::vector<int32_t> ids) const {
  ids.insert(ids.begin(), before_.begin(), before_.end());
  ids.insert(ids.end(), behind_.begin(), behind_.end());
  return ids;
}

}  // namespace onepass
