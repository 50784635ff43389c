#include "cli/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <string_view>

namespace onepass {
namespace {

// In pixels. The right margin of a panel holds the lines' labels.
constexpr double kPanelWidth = 580;
constexpr double kPanelHeight = 320;
constexpr double kLeft = 74;
constexpr double kRight = 196;
constexpr double kTop = 104;
constexpr double kBottom = 92;
constexpr double kLabelSpacing = 17;
constexpr int kMaxTicks = 8;

// Contrast of about 4:1 against both white and #0d1117.
constexpr std::string_view kInk = "#7b8591";
constexpr std::array<std::string_view, 6> kPalette = {"#d9534f", "#c98a12", "#8b6cef", "#159a68", "#2f8fd8", "#d2569c"};

std::string escape(std::string_view text) {
  std::string escaped;
  for (char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string_view dash_pattern(PlotStroke stroke) {
  switch (stroke) {
    case PlotStroke::kSolid:
      return "none";
    case PlotStroke::kDashed:
      return "9 7";
    case PlotStroke::kDotted:
      return "0.1 6";
  }
  return "none";
}

// Maps an axis to pixels.
class Scale {
 public:
  Scale(const PlotAxis& axis, double low, double high, double low_pixel, double high_pixel)
      : log_(axis.log_base > 0), low_(low), high_(high), low_pixel_(low_pixel), high_pixel_(high_pixel) {}

  double operator()(double value) const {
    const double share = (project(value) - project(low_)) / (project(high_) - project(low_));
    return low_pixel_ + share * (high_pixel_ - low_pixel_);
  }
  double low() const { return low_; }
  double high() const { return high_; }

 private:
  double project(double value) const { return log_ ? std::log(value) : value; }

  bool log_;
  double low_, high_, low_pixel_, high_pixel_;
};

bool drawable(const PlotAxis& axis, double value) { return std::isfinite(value) && (axis.log_base == 0 || value > 0); }

// The smallest and the largest value of the series along one axis, widened to whole powers (log) or to 0 (linear).
Scale fit(const PlotPanel& panel, const PlotAxis& axis, double PlotPoint::*coordinate, double low_pixel,
          double high_pixel) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const PlotSeries& series : panel.series) {
    for (const auto* points : {&series.line, &series.points}) {
      for (const PlotPoint& point : *points) {
        if (!drawable(panel.x, point.x) || !drawable(panel.y, point.y)) continue;
        low = std::min(low, point.*coordinate);
        high = std::max(high, point.*coordinate);
      }
    }
  }
  if (!(low <= high)) low = high = 1;  // nothing to draw
  if (axis.log_base > 0) {
    // The tiny steps keep a bound that is a whole power, but for rounding, where it is.
    const double base = std::log(axis.log_base);
    low = std::pow(axis.log_base, std::floor(std::log(low) / base + 1e-9));
    high = std::pow(axis.log_base, std::ceil(std::log(high) / base - 1e-9));
    if (low == high) high *= axis.log_base;
  } else {
    low = std::min(low, 0.0);
    high = high > low ? high + 0.04 * (high - low) : low + 1;
  }
  return Scale(axis, low, high, low_pixel, high_pixel);
}

std::string format_tick(const PlotAxis& axis, double value) {
  return axis.format ? axis.format(value) : fmt::format("{:.6g}", value);
}

struct EndLabel {
  double y = 0.0;  // of the line's end, then of the label
  std::string_view text;
  std::string value;  // follows the text, in plain weight
  std::string_view color;
};

class SvgWriter {
 public:
  explicit SvgWriter(std::string& out) : out_(out) {}

  void line(double x1, double y1, double x2, double y2, double opacity) {
    add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-opacity=\"{}\"/>\n", x1, y1,
        x2, y2, kInk, opacity);
  }

  void text(double x, double y, std::string_view content, std::string_view style, std::string_view color = kInk) {
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"{}\" {}>{}</text>\n", x, y, color, style, escape(content));
  }

  void end_label(double x, const EndLabel& label) {
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"{}\" class=\"series\">{}<tspan dx=\"8\" "
        "font-weight=\"400\">{}</tspan></text>\n",
        x, label.y + 4, label.color, escape(label.text), escape(label.value));
  }

  void polyline(const PlotSeries& series, std::string_view color, const std::vector<PlotPoint>& pixels) {
    if (pixels.size() < 2) return;
    std::string points;
    for (const PlotPoint& p : pixels) points += fmt::format("{:.1f},{:.1f} ", p.x, p.y);
    points.pop_back();
    add("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-linecap=\"round\" "
        "stroke-linejoin=\"round\" stroke-dasharray=\"{}\" stroke-opacity=\"{}\"/>\n",
        points, color, series.width, dash_pattern(series.stroke), series.opacity);
  }

  void dot(const PlotSeries& series, std::string_view color, const PlotPoint& at) {
    add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"{}\" fill-opacity=\"{}\"/>\n", at.x, at.y,
        2 + series.width / 2, color, series.opacity);
  }

 private:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
  }

  std::string& out_;
};

// Moves labels apart, keeping their order and staying as close to their lines as that allows: clusters that overlap are
// merged and centred on the mean of their lines' ends.
void spread(std::vector<EndLabel>& labels) {
  struct Cluster {
    double sum = 0.0;
    int count = 0;
    double center() const { return sum / count; }
    double half() const { return kLabelSpacing * count / 2; }
  };
  std::ranges::stable_sort(labels, {}, &EndLabel::y);
  std::vector<Cluster> clusters;
  for (const EndLabel& label : labels) {
    clusters.push_back({label.y, 1});
    while (clusters.size() > 1) {
      const Cluster& last = clusters.back();
      Cluster& previous = clusters[clusters.size() - 2];
      if (last.center() - last.half() >= previous.center() + previous.half()) break;
      previous.sum += last.sum;
      previous.count += last.count;
      clusters.pop_back();
    }
  }
  size_t at = 0;
  for (const Cluster& cluster : clusters) {
    double y = cluster.center() - cluster.half() + kLabelSpacing / 2;
    for (int n = 0; n < cluster.count; ++n, y += kLabelSpacing) labels[at++].y = y;
  }
}

void draw_axes(SvgWriter& svg, const PlotPanel& panel, const Scale& x, const Scale& y) {
  const double left = x(x.low());
  const double right = x(x.high());
  const double bottom = y(y.low());
  for (double tick : plot_ticks(y.low(), y.high(), panel.y.log_base, kMaxTicks)) {
    svg.line(left, y(tick), right, y(tick), 0.25);
    svg.text(left - 8, y(tick) + 4, format_tick(panel.y, tick), "class=\"tick\" text-anchor=\"end\"");
  }
  for (double tick : plot_ticks(x.low(), x.high(), panel.x.log_base, kMaxTicks)) {
    svg.line(x(tick), bottom, x(tick), bottom + 5, 0.9);
    svg.text(x(tick), bottom + 19, format_tick(panel.x, tick), "class=\"tick\" text-anchor=\"middle\"");
  }
  svg.line(left, bottom, right, bottom, 0.9);
  svg.text((left + right) / 2, bottom + 42, panel.x.label, "class=\"axis\" text-anchor=\"middle\"");
  svg.text(left, y(y.high()) - 14, panel.y.label, "class=\"axis\"");
  svg.text(left, y(y.high()) - 36, panel.title, "class=\"panel\"");
}

void draw_panel(SvgWriter& svg, const PlotPanel& panel, double offset) {
  const Scale x = fit(panel, panel.x, &PlotPoint::x, offset + kLeft, offset + kPanelWidth - kRight);
  const Scale y = fit(panel, panel.y, &PlotPoint::y, kTop + kPanelHeight, kTop);
  draw_axes(svg, panel, x, y);

  const auto to_pixels = [&](const std::vector<PlotPoint>& points) {
    std::vector<PlotPoint> pixels;
    for (const PlotPoint& point : points) {
      if (drawable(panel.x, point.x) && drawable(panel.y, point.y)) pixels.push_back({x(point.x), y(point.y)});
    }
    return pixels;
  };
  std::vector<EndLabel> labels;
  for (size_t n = 0; n < panel.series.size(); ++n) {
    const PlotSeries& series = panel.series[n];
    const std::string_view color = series.color.empty() ? kPalette[n % kPalette.size()] : series.color;
    const std::vector<PlotPoint> line = to_pixels(series.line);
    const std::vector<PlotPoint> points = to_pixels(series.points);
    svg.polyline(series, color, line);
    for (const PlotPoint& point : points) svg.dot(series, color, point);
    const std::vector<PlotPoint>& drawn = line.empty() ? points : line;
    if (drawn.empty()) continue;
    const PlotPoint& end = series.line.empty() ? series.points.back() : series.line.back();
    labels.push_back({drawn.back().y, series.label, panel.end_values ? format_tick(panel.y, end.y) : "", color});
  }
  spread(labels);
  for (const EndLabel& label : labels) svg.end_label(x(x.high()) + 12, label);
}

}  // namespace

std::vector<double> plot_ticks(double low, double high, double log_base, int limit) {
  std::vector<double> ticks;
  if (log_base > 0) {
    const int first = static_cast<int>(std::ceil(std::log(low) / std::log(log_base) - 1e-9));
    const int last = static_cast<int>(std::floor(std::log(high) / std::log(log_base) + 1e-9));
    const int step = std::max(1, (last - first + limit - 1) / limit);
    // Multiples of the step, so that bytes stop at 1 KiB, 1 MiB, ... when it divides ten.
    for (int power = first; power <= last; ++power) {
      if (power % step == 0) ticks.push_back(std::pow(log_base, power));
    }
    return ticks;
  }
  const double rough = (high - low) / limit;
  const double magnitude = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * magnitude;
  for (double candidate : {1.0, 2.0, 5.0}) {
    if (candidate * magnitude >= rough * (1 - 1e-9)) {
      step = candidate * magnitude;
      break;
    }
  }
  for (double n = std::ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; ++n) ticks.push_back(n * step);
  return ticks;
}

std::string format_bytes(double bytes) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.3g} {}", bytes, kUnits[unit]);
}

std::string format_tokens(double tokens) {
  return tokens < 1024 ? fmt::format("{:.6g}", tokens) : fmt::format("{:.6g}K", tokens / 1024);
}

std::string render_svg(const Plot& plot) {
  const double width = kPanelWidth * static_cast<double>(plot.panels.size());
  const double height = kTop + kPanelHeight + kBottom;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "font-family=\"-apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Helvetica, Arial, sans-serif\" role=\"img\">\n"
      "<title>{2}</title>\n"
      "<style>.title{{font-size:19px;font-weight:600}}.panel{{font-size:15px;font-weight:600}}"
      ".axis,.caption{{font-size:12px}}.tick{{font-size:12px}}.series{{font-size:13px;font-weight:600}}</style>\n",
      width, height, escape(plot.title));
  SvgWriter svg(out);
  svg.text(kLeft, 30, plot.title, "class=\"title\"");
  for (size_t n = 0; n < plot.panels.size(); ++n) draw_panel(svg, plot.panels[n], kPanelWidth * static_cast<double>(n));
  svg.text(kLeft, height - 18, plot.caption, "class=\"caption\"");
  return out + "</svg>\n";
}

}  // namespace onepass
