// octavo: parses the command line, runs one command, turns every failure into one line and an exit code.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <optional>
#include <system_error>
#include <type_traits>
#include <variant>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/output.h"
#include "octavo/build/version.h"
#include "octavo/runtime/device_worker.h"
#include "octavo/runtime/session.h"

namespace octavo::cli {
namespace {

// "-o,--output" and "FILE" of "-o,--output FILE".
std::string Names(const Option& option) { return option.names.substr(0, option.names.find(' ')); }
std::string ValueName(const Option& option) {
  const std::size_t space = option.names.find(' ');
  return space == std::string::npos ? "" : option.names.substr(space + 1);
}

// The name that messages give an option: "--output" of "-o,--output FILE".
std::string LongName(const Option& option) {
  const std::string names = Names(option);
  return names.substr(names.rfind(',') + 1);
}

// The whole text as a number; the parser's own conversion takes an empty text and clamps what does not fit.
template <class T>
T ParseNumber(const std::string& text, const std::string& option) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = std::is_integral_v<T>;
  if (end != text.data() + text.size() || error == std::errc::invalid_argument) {
    ThrowUsage("'" + text + "' is not a " + (whole ? "whole number" : "number"), option,
               std::string("write for example ") + (whole ? "16" : "0.5"));
  }
  if (error != std::errc()) ThrowUsage("'" + text + "' is beyond all numbers that fit", option, "give one that fits");
  return value;
}

// What the parser's error means, in words of ours: the option and what is wrong with how it was given.
[[noreturn]] void ThrowParseError(const CLI::ParseError& error, const std::string& command) {
  const std::string text = error.what(), see = "see " + command + " --help";
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const std::string option = text.substr(0, text.find(':'));
    if (text.find("At Most") != std::string::npos) ThrowUsage("given more than once", option, "keep one of them");
    ThrowUsage("the option needs a value", option, see);
  }
  if (const std::string convert = "Could not convert: "; text.starts_with(convert)) {
    const std::string option = text.substr(convert.size(), text.find(' ', convert.size()) - convert.size());
    ThrowUsage("the flag takes no value", option, "write " + option + ", or leave it out");
  }
  ThrowUsage(text, command, see);
}

// The option as the parser sees it; every kind of target is one line here and nowhere else.
void AddOption(CLI::App& app, const Option& option) {
  const std::string names = Names(option);
  CLI::Option* made = std::visit(
      [&](auto* target) -> CLI::Option* {
        using T = std::remove_pointer_t<decltype(target)>;
        if constexpr (std::is_same_v<T, bool>) {
          return app.add_flag(names, *target, option.help);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          CLI::Option* list = app.add_option(names, *target, option.help);
          // One value each time it is given; a positional takes all that there are.
          return names[0] == '-' ? list->expected(1)->take_all() : list;
        } else if constexpr (std::is_same_v<T, std::string>) {
          return app.add_option(names, *target, option.help);
        } else {
          using Value = typename T::value_type;
          const auto set = [target, name = LongName(option)](const std::string& text) {
            if constexpr (std::is_same_v<Value, std::string>) {
              if (text.empty()) ThrowUsage("the value is empty", name, "leave the option out");
              *target = text;
            } else {
              *target = ParseNumber<Value>(text, name);
            }
          };
          return app.add_option_function<std::string>(names, set, option.help);
        }
      },
      option.target);
  if (!std::holds_alternative<bool*>(option.target)) made->type_name(ValueName(option));
  if (!option.group.empty()) made->group(option.group);
}

std::vector<std::string> OptionNames(const Command& command) {
  std::vector<std::string> names = {"--help"};
  for (const Option& option : command.options) {
    const std::string all = Names(option);
    std::size_t at = 0;
    while (at < all.size()) {
      const std::size_t end = std::min(all.find(',', at), all.size());
      const std::string name = all.substr(at, end - at);
      if (name.starts_with("--")) names.push_back(name);
      at = end + 1;
    }
  }
  return names;
}

// Files that the command writes besides its output must not fall on what it reads, nor on each other.
void RefuseClashes(const Command& command) {
  namespace fs = std::filesystem;
  struct Named {
    std::string option;
    fs::path path;
  };
  std::vector<Named> named;
  const auto add = [&named](const std::string& option, const std::string& value) {
    std::error_code error;
    fs::path path = fs::weakly_canonical(value, error);
    if (!value.empty() && !error) named.push_back({option, std::move(path)});
  };
  for (const Option& option : command.options) {
    const std::string name = LongName(option);
    std::visit(
        [&](const auto* target) {
          using T = std::remove_cvref_t<decltype(*target)>;
          if constexpr (std::is_same_v<T, std::string>) add(name, *target);
          if constexpr (std::is_same_v<T, std::optional<std::string>>) add(name, target->value_or(""));
          if constexpr (std::is_same_v<T, std::vector<std::string>>) {
            for (const std::string& value : *target) add(name, value);
          }
        },
        option.target);
  }
  for (const Named& written : named) {
    if (written.option != "--json" && written.option != "--save-statistics") continue;
    std::error_code error;
    const fs::file_status status = fs::status(written.path, error);
    if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status)) continue;  // /dev/stdout
    for (const Named& other : named) {
      if (&other == &written) continue;
      const fs::path& outer = other.path;  // an output directory owns what is in it
      const bool within =
          other.option == "--output" &&
          std::mismatch(outer.begin(), outer.end(), written.path.begin(), written.path.end()).first == outer.end();
      if (other.path != written.path && !within) continue;
      const bool flag = other.option.starts_with("-");
      if (within && other.path != written.path) {
        ThrowUsage(written.option + " names a file in the output directory", written.path.string(),
                   "name another file");
      }
      ThrowUsage(written.option + " names the file that " + (flag ? other.option + " names" : "the command works on"),
                 written.path.string(), "name another file");
    }
    char first = '{';
    std::ifstream(written.path) >> first;  // an empty file, and one that is not there, leave it
    if (first != '{' && first != '[' && fs::is_regular_file(status)) {
      ThrowUsage(written.option + " names a file that exists and is no JSON", written.path.string(),
                 "name another file");
    }
    OutputFile probe(written.path);  // what cannot be written is said before the work, not after it
  }
}

std::string VersionText() {
  std::string text = std::string("octavo ") + Version();
  try {
    text += " (ONNX Runtime " + OrtVersion() + ")";
  } catch (const Error&) {
    text += " (ONNX Runtime was not found: set OCTAVO_ORT_LIBRARY)";
  }
  return text + "\n";
}

int Run(int argc, char** argv) {
  // Diagnostics for those who work on Octavo itself.
  if (const char* level = std::getenv("OCTAVO_LOG"); level != nullptr && std::string_view(level) == "debug") {
    SetLogLevel(LogLevel::kDebug);
  }
  std::vector<Command> commands;
  commands.push_back(BuildCommand());
  commands.push_back(QuantizeCommand());
  commands.push_back(CalibrateCommand());
  commands.push_back(RewriteCommand());
  commands.push_back(CompareCommand());
  commands.push_back(PerfCommand());
  commands.push_back(InspectCommand());
  commands.push_back(DevicesCommand());
  commands.push_back(CompileCommand());
  commands.push_back(ExportCommand());

  CLI::App app{"Quantizes a trained model, makes what a device runs, and checks by running it that it is right."};
  app.name("octavo");
  app.footer(
      "Example:\n  octavo build --onnx model.onnx --device cpu --precision uint8 --data samples/ -o out/\n"
      "`octavo COMMAND --help` has the options and more examples.");
  bool version = false;
  app.add_flag("--version", version, "print the version");
  app.allow_extras();
  app.require_subcommand(0, 1);
  std::vector<CLI::App*> parsers;
  std::vector<std::string> names;
  for (const Command& command : commands) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary);
    sub->allow_extras();
    sub->footer(command.examples.empty() ? "" : "Examples:\n" + command.examples);
    for (const Option& option : command.options) AddOption(*sub, option);
    parsers.push_back(sub);
    names.push_back(command.name);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForAllHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::string command;
    for (std::size_t i = 0; i < parsers.size(); ++i) {
      if (parsers[i]->parsed()) command = " " + names[i];
    }
    ThrowParseError(error, "octavo" + command);
  }
  if (version) {
    Print(VersionText());
    return 0;
  }
  for (std::size_t i = 0; i < parsers.size(); ++i) {
    if (!parsers[i]->parsed()) continue;
    if (commands[i].any_arguments) return commands[i].run();
    for (const std::string& extra : parsers[i]->remaining()) {
      const std::string where = "octavo " + names[i];
      if (!extra.starts_with("-") || extra == "-") ThrowUsage("unexpected argument '" + extra + "'", where);
      const std::string how = DidYouMean(extra.substr(0, extra.find('=')), OptionNames(commands[i]));
      ThrowUsage("unknown option '" + extra + "'", where, how.empty() ? "see " + where + " --help" : how);
    }
    for (const std::string& extra : app.remaining()) {
      if (!extra.starts_with("-")) ThrowUsage("unexpected argument '" + extra + "'", "octavo");
      ThrowUsage("option '" + extra + "' stands before the command", "octavo",
                 "write it behind the command: octavo " + names[i] + " " + extra);
    }
    RefuseClashes(commands[i]);
    return commands[i].run();
  }
  std::string known;
  for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
  for (const std::string& extra : app.remaining()) {
    if (extra == "help") {
      Print(app.help());
      return 0;
    }
    if (extra.starts_with("-")) {
      ThrowUsage("unknown option '" + extra + "'", "octavo", "without a command there are --help and --version");
    }
    const std::string how = DidYouMean(extra, names);
    ThrowUsage("unknown command '" + extra + "'", "octavo", how.empty() ? "commands are " + known : how);
  }
  ThrowUsage("no command", "octavo", "commands are " + known);
}

// One line on stderr, whatever the exception.
int Report(const char* what, ExitCode code) {
  std::string line = std::string("octavo: error: ") + what;
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  std::fprintf(stderr, "%s\n", line.c_str());
  RemoveAllTemporaries();
  return static_cast<int>(code);
}

// Ends a command whose files are written. Taking apart what the system takes back anyway, the runtime's
// tables above all, would only make users wait; leak checkers and coverage want it done.
int Leave(int code) {
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__)
  std::fflush(nullptr);
  std::_Exit(code);
#else
  return code;
#endif
}

}  // namespace
}  // namespace octavo::cli

int main(int argc, char** argv) {
  using octavo::cli::Report;
  try {
    octavo::ServeIfWorker(argc, argv);
    octavo::InstallInterruptHandler();
    return octavo::cli::Leave(octavo::cli::Run(argc, argv));
  } catch (const octavo::Error& error) {
    return Report(error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return Report("out of memory", octavo::ExitCode::kInternal);
  } catch (const std::exception& error) {
    return Report(error.what(), octavo::ExitCode::kInternal);
  }
}
