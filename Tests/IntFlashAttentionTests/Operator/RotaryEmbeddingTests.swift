import AttentionTestSupport
import CAttentionKernels
import IntFlashAttention
import Testing

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

@Suite struct RotaryEmbeddingTests {
  private func noise(_ count: Int, seed: UInt64) -> [Float] {
    var random = TestRandom(seed: seed)
    return (0..<count).map { _ in random.normal() }
  }

  /// Three roundings, and those of the tables: half a unit in the last place of |x| + |y| each.
  @Test(arguments: RotaryEmbedding.Style.allCases, [8, 20, 64])
  func turnsByTheAnglesOfThePaper(_ style: RotaryEmbedding.Style, _ channels: Int) throws {
    let (dimension, tokens) = (64, 37)
    let embedding = try RotaryEmbedding(
      rotaryDimension: channels,
      positionCount: 5000,
      base: 500_000,
      style: style
    )
    let values = noise(tokens * dimension, seed: 7)
    let rows = try Tensor(values, shape: [1, tokens, dimension])
    let turned = try embedding.apply(to: rows.view, firstPosition: 4900).copyFloats()
    for token in 0..<tokens {
      let at = token * dimension
      #expect(turned[at + channels..<at + dimension] == values[at + channels..<at + dimension])
      for pair in 0..<channels / 2 {
        let isInterleaved = style == .interleaved
        let first = at + (isInterleaved ? 2 * pair : pair)
        let second = at + (isInterleaved ? 2 * pair + 1 : channels / 2 + pair)
        let angle =
          Double(4900 + token) * pow(500_000, -2 * Double(pair) / Double(channels))
        let (x, y) = (Double(values[first]), Double(values[second]))
        let bound = 2 * (x.magnitude + y.magnitude) * Double(Float.ulpOfOne)
        #expect((Double(turned[first]) - (x * cos(angle) - y * sin(angle))).magnitude <= bound)
        #expect((Double(turned[second]) - (y * cos(angle) + x * sin(angle))).magnitude <= bound)
      }
    }
  }

  @Test(arguments: InstructionSet.supported, RotaryEmbedding.Style.allCases)
  func kernelsGiveTheBitsOfTheDefinition(
    _ set: InstructionSet,
    _ style: RotaryEmbedding.Style
  ) throws {
    let kernels = unsafe try set.kernelTable()
    for (count, dimension, channels) in [(1, 2, 2), (19, 33, 32), (70, 96, 40), (5, 256, 256)] {
      let embedding = try RotaryEmbedding(
        rotaryDimension: channels,
        positionCount: count + 3,
        style: style
      )
      let values = noise(count * dimension, seed: UInt64(dimension))
      let rows = try Tensor(values, shape: [1, count, dimension])
      let expected = try embedding.apply(to: rows.view, firstPosition: 3).copyFloats()
      let pairs = channels / 2
      let angles = (0..<(count + 3) * pairs).map { index in
        Double(index / pairs) * pow(10_000, -2 * Double(index % pairs) / Double(channels))
      }
      let (cosines, sines) = (angles.map { Float(cos($0)) }, angles.map { Float(sin($0)) })
      var result = [Float](repeating: .nan, count: values.count)
      unsafe values.withUnsafeBufferPointer { source in
        unsafe cosines.withUnsafeBufferPointer { cosines in
          unsafe sines.withUnsafeBufferPointer { sines in
            unsafe result.withUnsafeMutableBufferPointer { result in
              var arguments = unsafe intfa_load_rotary()
              unsafe arguments.rows = intfa_rows(
                base: source.baseAddress,
                stride: Int64(dimension),
                format: INTFA_FLOAT32
              )
              unsafe arguments.end = Int64(count)
              unsafe arguments.dimension = Int32(dimension)
              unsafe arguments.pairs = Int32(pairs)
              unsafe arguments.interleaved = style == .interleaved
              unsafe arguments.cosines = cosines.baseAddress
              unsafe arguments.sines = sines.baseAddress
              unsafe arguments.position = 3
              unsafe arguments.step = 1
              unsafe arguments.target = result.baseAddress
              unsafe kernels.load_rotary(&arguments)
            }
          }
        }
      }
      #expect(result == expected, "\(count) rows of \(dimension)")
    }
  }

  @Test func givenTablesAreTakenAsTheyAre() throws {
    let cosines = try Tensor([1, 0.5], shape: [2, 1])
    let sines = try Tensor([0, 2], shape: [2, 1])
    let embedding = try RotaryEmbedding(cosines: cosines.view, sines: sines.view)
    #expect(embedding.rotaryDimension == 2)
    #expect(embedding.positionCount == 2)
    let rows = try Tensor([3, 4, 3, 4], shape: [1, 2, 2])
    #expect(try embedding.apply(to: rows.view).copyFloats() == [3, 4, 1.5 - 8, 2 + 6])
  }

  @Test func badTablesAreRefused() throws {
    func code(_ body: () throws(AttentionError) -> Void) -> AttentionError.Code? {
      do throws(AttentionError) { try body() } catch { return error.code }
      return nil
    }
    let good = try Tensor([1, 1], shape: [1, 2])
    let short = try Tensor([1], shape: [1, 1])
    let codes = try Tensor([1, 1], shape: [1, 2], elementType: .int8)
    let bad = try Tensor([1, .nan], shape: [1, 2])
    func tables(_ a: borrowing Tensor, _ b: borrowing Tensor) -> AttentionError.Code? {
      let (a, b) = (a.view, b.view)
      do throws(AttentionError) { _ = try RotaryEmbedding(cosines: a, sines: b) } catch {
        return error.code
      }
      return nil
    }
    #expect(tables(good, short) == .shapeMismatch)
    #expect(tables(good, codes) == .unsupportedElementType)
    #expect(tables(good, bad) == .nonFiniteInput)
    for (channels, positions, base) in [
      (3, 1, 10.0), (0, 1, 10), (258, 1, 10), (Int.max - 1, 1, 10), (2, 0, 10), (2, Int.max, 10),
      (2, 1, 0),
    ] {
      let found = code { () throws(AttentionError) in
        _ = try RotaryEmbedding(rotaryDimension: channels, positionCount: positions, base: base)
      }
      #expect(found == .invalidArgument, "\(channels), \(positions), \(base)")
    }
  }

  @Test(arguments: [-1, Int.min, 8, Int.max])
  func positionsBeyondTheTablesAreRefused(_ first: Int) throws {
    let embedding = try RotaryEmbedding(rotaryDimension: 4, positionCount: 9)
    let rows = try Tensor(.float32, shape: [1, 2, 4])
    do {
      _ = try embedding.apply(to: rows.view, firstPosition: first)
      Issue.record("position \(first) is not there")
    } catch {
      #expect(error.code == .invalidArgument)
    }
  }
}
