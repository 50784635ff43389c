#include "kv_cache/request_table.h"

#include <algorithm>

#include "base/check.h"

namespace onepass {

RequestTable::RequestTable(int max_requests, int max_pages_per_request)
    : max_pages_(max_pages_per_request),
      rows_(max_requests),
      table_(static_cast<size_t>(max_requests) * max_pages_per_request, kNoPage) {
  ONEPASS_CHECK_GE(max_requests, 1);
  ONEPASS_CHECK_GE(max_pages_per_request, 1);
  for (int slot = max_requests - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

int RequestTable::acquire() {
  if (free_slots_.empty()) return -1;
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  rows_[slot].used = true;
  return slot;
}

void RequestTable::release(int slot) {
  Row& row = rows_.at(slot);
  ONEPASS_CHECK(row.used);
  ONEPASS_CHECK_EQ(row.num_pages, 0);
  row = Row();
  free_slots_.push_back(slot);
}

void RequestTable::append(int slot, std::span<const PageId> pages, bool shared) {
  Row& row = rows_.at(slot);
  ONEPASS_CHECK(row.used);
  ONEPASS_CHECK_LE(row.num_pages + static_cast<int64_t>(pages.size()), max_pages_);
  if (shared) {
    ONEPASS_CHECK_EQ(row.num_pages, row.num_shared);
    row.num_shared += static_cast<int>(pages.size());
  }
  std::copy(pages.begin(), pages.end(), table_.begin() + static_cast<int64_t>(slot) * max_pages_ + row.num_pages);
  row.num_pages += static_cast<int>(pages.size());
}

void RequestTable::truncate(int slot, int count) {
  Row& row = rows_.at(slot);
  ONEPASS_CHECK_GE(count, 0);
  ONEPASS_CHECK_LE(count, row.num_pages);
  const auto begin = table_.begin() + static_cast<int64_t>(slot) * max_pages_;
  std::fill(begin + count, begin + row.num_pages, kNoPage);
  row.num_pages = count;
  row.num_shared = std::min(row.num_shared, count);
}

void RequestTable::set_num_shared_pages(int slot, int count) {
  Row& row = rows_.at(slot);
  ONEPASS_CHECK_GE(count, 0);
  ONEPASS_CHECK_LE(count, row.num_pages);
  row.num_shared = count;
}

std::span<const PageId> RequestTable::pages(int slot) const {
  return {table_.data() + static_cast<int64_t>(slot) * max_pages_, static_cast<size_t>(rows_.at(slot).num_pages)};
}

std::vector<int> RequestTable::used_slots() const {
  std::vector<int> slots;
  for (int slot = 0; slot < max_requests(); ++slot) {
    if (rows_[slot].used) slots.push_back(slot);
  }
  return slots;
}

int64_t RequestTable::token_slot(int slot, int64_t position, int page_size) const {
  const std::span<const PageId> row = pages(slot);
  ONEPASS_CHECK_LT(position / page_size, static_cast<int64_t>(row.size()));
  return static_cast<int64_t>(row[position / page_size]) * page_size + position % page_size;
}

}  // namespace onepass
