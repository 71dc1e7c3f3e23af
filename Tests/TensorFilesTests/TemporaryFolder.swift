import TensorFiles

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// A folder of its own for one test, removed with all that is in it.
final class TemporaryFolder {
  private let url: URL

  init() throws {
    url = FileManager.default.temporaryDirectory
      .appendingPathComponent("TensorFilesTests-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit {
    try? FileManager.default.removeItem(at: url)
  }

  /// The names of the files in it.
  var names: [String] {
    get throws { try FileManager.default.contentsOfDirectory(atPath: url.path).sorted() }
  }

  /// Where a file of this name is or would be.
  func path(_ name: String = "file") -> String { url.appendingPathComponent(name).path }

  /// Writes a file and returns where it is.
  @discardableResult
  func file(_ bytes: [UInt8], _ name: String = "file") throws -> String {
    try Data(bytes).write(to: url.appendingPathComponent(name))
    return path(name)
  }

  /// The bytes of a file.
  func bytes(_ name: String = "file") throws -> [UInt8] {
    [UInt8](try Data(contentsOf: url.appendingPathComponent(name)))
  }

  /// Makes a folder in it and returns where it is.
  func folder(_ name: String) throws -> String {
    try FileManager.default.createDirectory(atPath: path(name), withIntermediateDirectories: false)
    return path(name)
  }
}

/// The code of the error that `body` throws, or nil where it throws none.
func failureCode(_ body: () throws(TensorFileError) -> Void) -> TensorFileError.Code? {
  do throws(TensorFileError) {
    try body()
    return nil
  } catch {
    return error.code
  }
}

/// A `.safetensors` file with this header, without padding, and `dataCount` bytes 0, 1, 2, ….
func safetensors(_ header: String, dataCount: Int = 0) -> [UInt8] {
  safetensors(Array(header.utf8), dataCount: dataCount)
}

/// As `safetensors(_:dataCount:)`, with a header that need not be text.
func safetensors(_ header: [UInt8], dataCount: Int = 0) -> [UInt8] {
  let length = (0..<8).map { UInt8(truncatingIfNeeded: header.count >> (8 * $0)) }
  return length + header + (0..<dataCount).map { UInt8(truncatingIfNeeded: $0) }
}

/// A `.npy` file with this dictionary, padded and ended as the format wants.
func npy(
  _ dictionary: String,
  version: (UInt8, UInt8) = (1, 0),
  dataCount: Int = 0
) -> [UInt8] {
  let lengthCount = version.0 == 1 ? 2 : 4
  let padding = -(8 + lengthCount + dictionary.utf8.count + 1) & 63
  let text = Array(dictionary.utf8) + [UInt8](repeating: 0x20, count: padding) + [0x0A]
  let length = (0..<lengthCount).map { UInt8(truncatingIfNeeded: text.count >> (8 * $0)) }
  let data = (0..<dataCount).map { UInt8(truncatingIfNeeded: $0) }
  return [0x93] + Array("NUMPY".utf8) + [version.0, version.1] + length + text + data
}
