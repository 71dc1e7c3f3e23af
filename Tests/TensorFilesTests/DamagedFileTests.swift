import IntFlashAttention
import TensorFiles
import Testing

/// Damages good files in many ways: each gives an error or tensors that can be read to the end.
struct DamagedFileTests {
  private let folder: TemporaryFolder

  init() throws {
    folder = try TemporaryFolder()
  }

  /// The same numbers in every run (SplitMix64).
  private struct Generator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
      state &+= 0x9E37_79B9_7F4A_7C15
      var mixed = state
      mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
      mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
      return mixed ^ (mixed >> 31)
    }
  }

  private static let pieces = [
    "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "-", "0", "9", "999999999999", "e", ".", " ",
    "null", "NaN", "\u{FEFF}", "é", "\0", "\n", "(", ")", "'", "F64", "U8", "BF16", "True", "__",
  ]

  /// `bytes` with one to four changes before `end`: bytes flipped, removed or inserted.
  private func damaged(_ bytes: [UInt8], end: Int, _ generator: inout Generator) -> [UInt8] {
    var result = bytes
    for _ in 0..<Int.random(in: 1...4, using: &generator) {
      let place = Int.random(in: 0..<min(end, result.count), using: &generator)
      switch Int.random(in: 0..<4, using: &generator) {
      case 0: result[place] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
      case 1: result[place] = UInt8.random(in: 0...255, using: &generator)
      case 2: result.remove(at: place)
      default:
        let piece = Self.pieces.randomElement(using: &generator) ?? ""
        result.insert(contentsOf: piece.utf8, at: place)
      }
    }
    return result
  }

  /// A damaged header; its length is set right so that the damage is reached.
  private func damagedHeader(_ header: [UInt8], _ generator: inout Generator) -> [UInt8] {
    safetensors(damaged(header, end: header.count, &generator))
  }

  private func goodSafetensors() throws -> [UInt8] {
    var writer = SafetensorsWriter(metadata: ["a": "b", "é\n": "\\"])
    for (index, type) in ElementType.allCases.enumerated() {
      let tensor = try Tensor([1, 2, 3], shape: [1, 3], elementType: type)
      writer.add("tensor \(index)", tensor.view)
    }
    let empty = try Tensor(.float32, shape: [0, 4])
    writer.add("empty", empty.view)
    let scalar = try Tensor([5], shape: [])
    writer.add("scalar", scalar.view)
    try writer.write(to: folder.path())
    return try folder.bytes()
  }

  /// Whether the file opens; whatever it then offers must be readable and of its own size.
  private func isReadable(_ bytes: [UInt8]) throws -> Bool {
    let path = try folder.file(bytes)
    do throws(TensorFileError) {
      let file = try SafetensorsFile(path: path)
      let entries = try file.tensorNames.map { name throws(TensorFileError) in
        try file.entry(name)
      }
      #expect(entries.reduce(0) { $0 + $1.byteCount } <= bytes.count - 8)
      for entry in entries { readToTheEnd(entry, of: file) }
      return true
    } catch {
      return false
    }
  }

  private func readToTheEnd(_ entry: SafetensorsEntry, of file: borrowing SafetensorsFile) {
    do throws(TensorFileError) {
      let tensor = try file.tensor(entry.name)
      #expect(tensor.shape == entry.shape)
      #expect(tensor.copyFloats().count == tensor.count)
    } catch {
      #expect(error.code == .unsupportedType, "\(error)")
    }
  }

  @Test func everyTruncationIsRefused() throws {
    let good = try goodSafetensors()
    for count in good.indices {
      #expect(try !isReadable(Array(good.prefix(count))), "\(count) bytes")
    }
    #expect(try isReadable(good))
    #expect(try !isReadable(good + [0]))
  }

  @Test func everyByteOfTheHeaderCanFlip() throws {
    let good = try goodSafetensors()
    for place in good.indices {
      var bytes = good
      bytes[place] ^= 1 << UInt8(place % 8)
      _ = try isReadable(bytes)
    }
  }

  @Test func damagedHeadersAreRefusedOrReadable() throws {
    let good = try goodSafetensors()
    let length = Int(good[0]) | Int(good[1]) << 8
    let header = Array(good[8..<8 + length])
    let data = good[(8 + length)...]
    var generator = Generator(state: 1)
    var readable = 0
    for _ in 0..<2000 {
      if try isReadable(damagedHeader(header, &generator) + data) { readable += 1 }
    }
    // Some damage only touches names or blanks. If none were readable the test would test little.
    #expect(readable > 0 && readable < 1000)
  }

  @Test func damagedArraysAreRefusedOrReadable() throws {
    let tensor = try Tensor([1, 2, 3, 4, 5, 6], shape: [2, 3])
    try NpyFile.write(tensor.view, to: folder.path())
    let good = try folder.bytes()
    var generator = Generator(state: 2)
    var examples = good.indices.map { Array(good.prefix($0)) }
    for _ in 0..<2000 { examples.append(damaged(good, end: 80, &generator)) }
    var readable = 0
    for (index, bytes) in examples.enumerated() {
      let path = try folder.file(bytes)
      do throws(TensorFileError) {
        let tensor = try NpyFile.read(path: path)
        #expect(index >= good.count, "a truncated file was accepted")
        #expect(tensor.copyFloats().count == tensor.count)
        #expect(tensor.byteCount <= bytes.count)
        readable += 1
      } catch {
        #expect(error.path == path)
      }
    }
    #expect(readable > 0 && readable < 1000)
  }
}
