import Foundation
import Testing

/// What a run of the built `intfa` gave.
struct CommandRun {
  let status: Int32
  /// Standard output.
  let output: String
  /// Standard error.
  let messages: String

  /// Runs `intfa` with these arguments and waits for its end.
  init(_ arguments: String..., environment: [String: String] = [:]) throws {
    try self.init(arguments, environment: environment)
  }

  /// Runs `intfa` with these arguments and waits for its end.
  init(_ arguments: [String], environment: [String: String] = [:]) throws {
    let folder = try TemporaryFolder()
    let (outputPath, messagesPath) = (folder.path("output"), folder.path("messages"))
    let process = try Self.process(arguments, environment: environment)
    // Files rather than pipes: a pipe that nobody reads blocks the writer when it is full.
    process.standardOutput = try Self.fileForWriting(outputPath)
    process.standardError = try Self.fileForWriting(messagesPath)
    try process.run()
    process.waitUntilExit()
    try #require(process.terminationReason == .exit, "\(arguments) was ended by a signal")
    status = process.terminationStatus
    output = try String(contentsOfFile: outputPath, encoding: .utf8)
    messages = try String(contentsOfFile: messagesPath, encoding: .utf8)
  }

  /// A process of the built tool, not yet running.
  static func process(_ arguments: [String], environment: [String: String] = [:]) throws -> Process
  {
    let process = Process()
    let tool: URL = try #require(executable, "intfa is not beside the tests")
    process.executableURL = tool
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
    return process
  }

  private static func fileForWriting(_ path: String) throws -> FileHandle {
    try Data().write(to: URL(filePath: path))
    return try FileHandle(forWritingTo: URL(filePath: path))
  }

  /// The built tool, which lies in the folder of the test bundle.
  private static let executable: URL? = {
    for argument in CommandLine.arguments {
      var url = URL(filePath: argument)
      while url.pathComponents.count > 1 {
        url.deleteLastPathComponent()
        let candidate = url.appending(path: "intfa")
        let values = try? candidate.resourceValues(forKeys: [.isRegularFileKey])
        if argument.contains(".xctest"), values?.isRegularFile == true { return candidate }
      }
    }
    return nil
  }()

  /// The keys of the first object of JSON on standard output, in the order in which they stand.
  var firstKeys: [String] {
    let object = output.prefix { $0 != "}" }
    return object.matches(of: #/"(\w+)": /#).map { String($0.output.1) }
  }

  /// The objects of JSON on standard output.
  func objects() throws -> [[String: Any]] {
    let json = try JSONSerialization.jsonObject(with: Data(output.utf8))
    return try #require(json as? [[String: Any]])
  }
}

/// A folder that goes when its owner does.
final class TemporaryFolder: Sendable {
  private let url: URL

  init() throws {
    url = FileManager.default.temporaryDirectory.appending(path: "intfa-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  /// A path inside.
  func path(_ name: String) -> String { url.appending(path: name).path(percentEncoded: false) }

  /// The bytes of a file inside.
  func bytes(_ name: String) throws -> Data { try Data(contentsOf: url.appending(path: name)) }
}
