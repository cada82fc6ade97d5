#include "bench/fit.h"

#include <array>
#include <map>

namespace vidkv::cli {

Line fit_line(const std::vector<double> & x, const std::vector<double> & y) {
    const auto n = static_cast<double>(x.size());
    double mean_x = 0, mean_y = 0, xx = 0, xy = 0, yy = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        mean_x += x[i] / n;
        mean_y += y[i] / n;
    }
    for (size_t i = 0; i < x.size(); ++i) {
        xx += (x[i] - mean_x) * (x[i] - mean_x);
        xy += (x[i] - mean_x) * (y[i] - mean_y);
        yy += (y[i] - mean_y) * (y[i] - mean_y);
    }
    Line line;
    line.slope = xx > 0 ? xy / xx : 0;
    line.intercept = mean_y - line.slope * mean_x;
    line.r2 = xx > 0 && yy > 0 ? xy * xy / (xx * yy) : 0;
    return line;
}

Json linear_fits(const Json & rows) {
    struct Series {
        Json key;
        std::vector<double> tokens, ms;
    };
    constexpr std::array<const char *, 6> KEYS = {"shape", "phase", "query_tokens", "isa", "threads", "name"};
    std::map<std::string, Series> all;
    std::vector<std::string> order;
    for (const Json & row : rows) {
        Json key = Json::object();
        for (const char * name : KEYS) key[name] = row[name];
        const auto [at, added] = all.try_emplace(key.dump());
        if (added) order.push_back(at->first);
        at->second.key = key;
        at->second.tokens.push_back(row["tokens"].get<double>());
        at->second.ms.push_back(row["ms"].get<double>());
    }
    Json fits = Json::array();
    for (const std::string & name : order) {
        const Series & series = all[name];
        if (series.tokens.size() < 3) continue;
        const Line line = fit_line(series.tokens, series.ms);
        Json fit = series.key;
        fit["us_per_1k_tokens"] = line.slope * 1e6;
        fit["us_at_zero"] = line.intercept * 1e3;
        fit["r2"] = line.r2;
        fits.push_back(fit);
    }
    return fits;
}

} // namespace vidkv::cli
