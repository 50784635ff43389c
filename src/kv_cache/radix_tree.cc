#include "kv_cache/radix_tree.h"

#include <algorithm>

#include "base/check.h"
#include "base/strings.h"

namespace onepass {

class RadixTree::Node {
 public:
  std::vector<int32_t> tokens;  // of the edge from the parent: pages.size() * page_size
  std::vector<PageId> pages;
  Node* parent = nullptr;  // null: the root of a salt
  std::string salt;        // of a root
  Children children;       // by the tokens of their first page
  int locks = 0;           // on this node and those below
  uint64_t last_used = 0;
  bool is_listed = false;  // in leaves_

  bool is_root() const { return parent == nullptr; }
  int num_pages() const { return static_cast<int>(pages.size()); }
};

RadixTree::RadixTree(PageAllocator& pages, int page_size) : allocator_(pages), page_size_(page_size) {
  ONEPASS_CHECK_GE(page_size, 1);
}

RadixTree::~RadixTree() = default;

void RadixTree::forget() {
  leaves_.clear();
  roots_.clear();
  num_pages_ = num_evictable_ = 0;
}

std::vector<int32_t> RadixTree::first_page(std::span<const int32_t> tokens) const {
  return {tokens.begin(), tokens.begin() + page_size_};
}

int RadixTree::common_pages(const Node& node, std::span<const int32_t> tokens) const {
  const size_t limit = std::min(node.tokens.size(), tokens.size());
  const auto end = node.tokens.begin() + static_cast<int64_t>(limit);
  const int64_t same = std::mismatch(node.tokens.begin(), end, tokens.begin()).first - node.tokens.begin();
  return static_cast<int>(same / page_size_);
}

RadixTree::Node* RadixTree::split(Node* node, int count) {
  const int64_t cut = int64_t{count} * page_size_;
  auto owned = std::make_unique<Node>();
  Node* const upper = owned.get();
  upper->tokens.assign(node->tokens.begin(), node->tokens.begin() + cut);
  upper->pages.assign(node->pages.begin(), node->pages.begin() + count);
  upper->parent = node->parent;
  upper->locks = node->locks;
  upper->last_used = node->last_used;
  std::unique_ptr<Node>& place = node->parent->children.at(first_page(node->tokens));
  node->tokens.erase(node->tokens.begin(), node->tokens.begin() + cut);
  node->pages.erase(node->pages.begin(), node->pages.begin() + count);
  node->parent = upper;
  upper->children.emplace(first_page(node->tokens), std::move(place));
  place = std::move(owned);
  return upper;
}

RadixTree::Node* RadixTree::walk(std::span<const int32_t> tokens, const std::string& salt, std::vector<PageId>& pages) {
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return nullptr;
  Node* node = root->second.get();
  while (static_cast<int64_t>(tokens.size()) >= page_size_) {
    const auto child = node->children.find(first_page(tokens));
    if (child == node->children.end()) break;
    Node* next = child->second.get();
    const int common = common_pages(*next, tokens);
    if (common < next->num_pages()) next = split(next, common);
    pages.insert(pages.end(), next->pages.begin(), next->pages.end());
    tokens = tokens.subspan(next->tokens.size());
    node = next;
  }
  return node->is_root() ? nullptr : node;
}

RadixTree::Match RadixTree::match(std::span<const int32_t> tokens, const std::string& salt) {
  Match match;
  match.lock = walk(tokens, salt, match.pages);
  if (match.lock != nullptr) {
    touch(match.lock);
    add_lock(match.lock, 1);
  }
  return match;
}

int64_t RadixTree::cached_tokens(std::span<const int32_t> tokens, const std::string& salt) const {
  const auto root = roots_.find(salt);
  if (root == roots_.end()) return 0;
  const Node* node = root->second.get();
  int64_t total = 0;
  while (static_cast<int64_t>(tokens.size()) >= page_size_) {
    const auto child = node->children.find(first_page(tokens));
    if (child == node->children.end()) break;
    node = child->second.get();
    const int common = common_pages(*node, tokens);
    total += int64_t{common} * page_size_;
    if (common < node->num_pages()) break;
    tokens = tokens.subspan(node->tokens.size());
  }
  return total;
}

RadixTree::Match RadixTree::insert(std::span<const int32_t> tokens, std::span<const PageId> pages, int num_shared,
                                   int owner, Lock lock, const std::string& salt) {
  ONEPASS_CHECK_EQ(static_cast<int64_t>(tokens.size()), static_cast<int64_t>(pages.size()) * page_size_);
  ONEPASS_CHECK_LE(num_shared, static_cast<int>(pages.size()));
  Match match;
  Node* node = walk(tokens, salt, match.pages);
  const int present = static_cast<int>(match.pages.size());
  ONEPASS_CHECK_GE(present, num_shared);  // they are under `lock`
  // Somebody else has computed the same tokens meanwhile: one copy is enough.
  allocator_.free(owner, pages.subspan(num_shared, present - num_shared));
  if (present < static_cast<int>(pages.size())) {
    if (node == nullptr) {
      std::unique_ptr<Node>& root = roots_[salt];
      if (root == nullptr) {
        root = std::make_unique<Node>();
        root->salt = salt;
      }
      node = root.get();
    }
    const std::span<const PageId> added = pages.subspan(present);
    allocator_.move_to_prefix_cache(owner, added);
    auto leaf = std::make_unique<Node>();
    leaf->tokens.assign(tokens.begin() + int64_t{present} * page_size_, tokens.end());
    leaf->pages.assign(added.begin(), added.end());
    leaf->parent = node;
    Node* const parent = node;
    node = leaf.get();
    parent->children.emplace(first_page(leaf->tokens), std::move(leaf));
    num_pages_ += static_cast<int>(added.size());
    num_evictable_ += static_cast<int>(added.size());
    update_leaf(parent);
    update_leaf(node);
    match.pages.insert(match.pages.end(), added.begin(), added.end());
  }
  if (node != nullptr) {
    touch(node);
    add_lock(node, 1);
  }
  match.lock = node;
  release(lock);
  return match;
}

void RadixTree::release(Lock lock) {
  if (lock != nullptr) add_lock(lock, -1);
}

void RadixTree::add_lock(Node* node, int change) {
  for (; !node->is_root(); node = node->parent) {
    const bool was_locked = node->locks > 0;
    node->locks += change;
    ONEPASS_CHECK_GE(node->locks, 0);
    const bool is_locked = node->locks > 0;
    if (was_locked != is_locked) num_evictable_ += is_locked ? -node->num_pages() : node->num_pages();
    update_leaf(node);
  }
}

void RadixTree::touch(Node* node) {
  ++clock_;
  for (; !node->is_root(); node = node->parent) {
    if (node->is_listed) {
      leaves_.erase({node->last_used, node});
      node->is_listed = false;
    }
    node->last_used = clock_;
    update_leaf(node);
  }
}

void RadixTree::update_leaf(Node* node) {
  const bool belongs = !node->is_root() && node->children.empty() && node->locks == 0;
  if (belongs == node->is_listed) return;
  if (belongs) {
    leaves_.emplace(node->last_used, node);
  } else {
    leaves_.erase({node->last_used, node});
  }
  node->is_listed = belongs;
}

int RadixTree::evict(int count) {
  int freed = 0;
  while (freed < count && !leaves_.empty()) {
    Node* const leaf = leaves_.begin()->second;
    const int cut = std::min(count - freed, leaf->num_pages());
    const int kept = leaf->num_pages() - cut;
    allocator_.free_from_prefix_cache(std::span(leaf->pages).subspan(kept));
    freed += cut;
    num_pages_ -= cut;
    num_evictable_ -= cut;
    if (kept > 0) {
      leaf->pages.resize(kept);
      leaf->tokens.resize(static_cast<size_t>(kept) * page_size_);
      continue;
    }
    leaves_.erase(leaves_.begin());
    Node* const parent = leaf->parent;
    parent->children.erase(first_page(leaf->tokens));  // the leaf is gone
    if (parent->is_root()) {
      remove_root_if_empty(parent);
    } else {
      update_leaf(parent);
    }
  }
  return freed;
}

void RadixTree::remove_root_if_empty(Node* root) {
  if (root->children.empty()) roots_.erase(std::string(root->salt));
}

std::vector<PageId> RadixTree::pages() const {
  std::vector<PageId> all;
  std::vector<const Node*> stack;
  for (const auto& [salt, root] : roots_) stack.push_back(root.get());
  while (!stack.empty()) {
    const Node* const node = stack.back();
    stack.pop_back();
    all.insert(all.end(), node->pages.begin(), node->pages.end());
    for (const auto& [tokens, child] : node->children) stack.push_back(child.get());
  }
  return all;
}

std::vector<std::string> RadixTree::check() const {
  std::vector<std::string> wrong;
  const auto expect = [&](bool ok, const char* what, const Node* node) {
    if (!ok)
      wrong.push_back(
          str_cat("prefix cache: ", what, node->pages.empty() ? "" : str_cat(" (page ", node->pages[0], ")")));
  };
  int num_pages = 0, num_evictable = 0;
  size_t num_leaves = 0;
  std::vector<const Node*> stack;
  for (const auto& [salt, root] : roots_) {
    expect(root->pages.empty() && root->parent == nullptr && root->salt == salt, "a root that is none", root.get());
    expect(!root->children.empty(), "an empty root", root.get());
    stack.push_back(root.get());
  }
  while (!stack.empty()) {
    const Node* const node = stack.back();
    stack.pop_back();
    int locks_below = 0;
    for (const auto& [tokens, child] : node->children) {
      expect(child->parent == node, "a child with another parent", child.get());
      expect(std::equal(tokens.begin(), tokens.end(), child->tokens.begin()), "a child under other tokens",
             child.get());
      expect(child->last_used <= node->last_used || node->is_root(), "a child used after its parent", child.get());
      locks_below += child->locks;
      stack.push_back(child.get());
    }
    if (node->is_root()) continue;
    expect(!node->pages.empty(), "a node without pages", node);
    expect(node->tokens.size() == node->pages.size() * static_cast<size_t>(page_size_),
           "tokens that do not fill the pages", node);
    expect(node->locks >= locks_below, "fewer locks than below", node);
    const bool is_leaf = node->children.empty() && node->locks == 0;
    expect(node->is_listed == is_leaf && leaves_.contains({node->last_used, const_cast<Node*>(node)}) == is_leaf,
           "a leaf that is not listed, or the reverse", node);
    num_leaves += is_leaf ? 1 : 0;
    num_pages += node->num_pages();
    num_evictable += node->locks == 0 ? node->num_pages() : 0;
  }
  if (num_pages != num_pages_)
    wrong.push_back(str_cat("prefix cache: counts ", num_pages_, " pages, holds ", num_pages));
  if (num_evictable != num_evictable_) {
    wrong.push_back(str_cat("prefix cache: counts ", num_evictable_, " evictable pages, found ", num_evictable));
  }
  if (num_leaves != leaves_.size()) {
    wrong.push_back(str_cat("prefix cache: lists ", leaves_.size(), " leaves, found ", num_leaves));
  }
  return wrong;
}

}  // namespace onepass
