import ArgumentParser
import IntFlashAttention

/// The command line: a verb parses, calls the library and prints.
@main
struct Intfa: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "intfa",
    abstract: "Quantised attention: run it, measure its speed and its error.",
    discussion: """
      Begin with 'intfa demo': attention of a real model's layer in every precision, on this \
      machine, nothing to prepare.

      Results go to standard output, messages to standard error. Exit status: 0 done, 1 a stated \
      bound is broken, 64 usage, 65 bad input data, 69 a backend, device or instruction set that \
      is not available here, 70 internal, 130 interrupted.
      """,
    version: version,
    subcommands: [
      Demo.self, Run.self, Quantize.self, Check.self, Bench.self, Paper.self, Info.self,
      Explain.self,
    ]
  )

  /// The version of the tool and of the library that it was built with.
  static let version = Library.version

  static func main() {
    Interruption.install()
    var command: any ParsableCommand
    do {
      command = try parseAsRoot()
    } catch {
      exit(withError: error)
    }
    do {
      try command.run()
    } catch {
      guard let failure = Failure(error) else { exit(withError: error) }
      Console.message("Error: \(failure.message)")
      exit(withError: ExitCode(failure.status.rawValue))
    }
  }
}
