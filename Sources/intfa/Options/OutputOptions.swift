import ArgumentParser
import IntFlashAttention

/// The form of a result.
package enum OutputFormat: String, ExpressibleByArgument, CaseIterable, Sendable {
  /// Aligned columns for people; figures are rounded.
  case table
  /// An array of objects; figures in full.
  case json
  /// A line of keys and a line per row; figures in full.
  case csv
}

/// How results and messages are written.
struct OutputOptions: ParsableArguments {
  @Option(help: "Form of the result on standard output.")
  var format = OutputFormat.table

  @Flag(help: "No messages and no progress on standard error, errors excepted.")
  var quiet = false

  /// Tells the person at the terminal something.
  func note(_ text: String) {
    if !quiet { Console.message(text) }
  }

  /// Prints a result.
  func print(_ report: Report, upright: Bool = false) {
    Swift.print(report.text(format, upright: upright))
  }

  /// Prints text that belongs to a table; with other formats it goes where messages go.
  func printBesideTable(_ text: String) {
    if format == .table { Swift.print(text) } else { note(text) }
  }
}

/// Where invented inputs begin.
struct SeedOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Seed of synthetic inputs; without effect where none are made.",
      valueName: "n"
    )
  )
  var seed: UInt64 = 1
}

/// One precision.
struct PrecisionOptions: ParsableArguments {
  @Option(help: ArgumentHelp("The recipe.", valueName: "name"))
  var precision: Precision = .int8
}
