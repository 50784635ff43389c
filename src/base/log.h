// Messages for people, on stderr (stdout belongs to results). Any thread may call.
#pragma once

#include <string_view>

namespace onepass {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Messages below `level` are dropped from now on; the default is kInfo.
void set_log_level(LogLevel level);

void log(LogLevel level, std::string_view message);

inline void log_debug(std::string_view message) { log(LogLevel::kDebug, message); }
inline void log_info(std::string_view message) { log(LogLevel::kInfo, message); }
inline void log_warning(std::string_view message) { log(LogLevel::kWarning, message); }
inline void log_error(std::string_view message) { log(LogLevel::kError, message); }

}  // namespace onepass
